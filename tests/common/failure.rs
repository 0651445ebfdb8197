//! Commands that must fail.

use assert_cmd::Command;

/// The error of a command that must fail with code 2.
pub fn error(command: &mut Command) -> String {
    let assert = command.assert().code(2);
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{said}");
    said
}
