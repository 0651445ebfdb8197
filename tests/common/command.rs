//! The program as a user runs it.

use assert_cmd::Command;

/// The built program, with two threads whatever the machine has.
pub fn cyanea() -> Command {
    let mut command = Command::cargo_bin("cyanea").expect("the binary is built with the tests");
    command.env("RAYON_NUM_THREADS", "2");
    command
}
