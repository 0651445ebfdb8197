fn main() -> std::process::ExitCode {
    cyanea::cli::main()
}
