//! Builds the kernels. See ARCHITECTURE.md.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
