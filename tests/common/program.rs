//! The program as a child process.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The program, for a user who tuned nothing and keeps no pipelines.
pub fn samara() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samara"));
    command.env_remove("SAMARA_LOG").env_remove("SAMARA_TUNE").stdin(Stdio::null());
    command.env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/no-cache"));
    command.env("SAMARA_PIPELINES", "off");
    command
}

/// Runs the program with arguments.
pub fn run(args: &[&str]) -> Output {
    samara().args(args).output().unwrap()
}

/// Runs with bytes on standard input.
pub fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = samara()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments does not read; then this write may fail.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Returns what a run that succeeded printed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", errors(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Returns the standard error of a run.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that a run failed with this exit code, reported why on standard error, and printed no result.
pub fn refused(output: &Output, code: i32, parts: &[&str]) {
    let message = errors(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}
