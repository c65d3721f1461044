//! Commands other than `run`.

mod common;

use common::{output, queztl};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_lists_the_exit_statuses_without_colours_in_a_pipe() {
    let output = output(["--help"]);
    let help = text(&output.stdout);
    assert!(output.status.success());
    assert!(help.contains("triple fault in the guest") && !help.contains('\x1b'), "{help}");
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(text(&output(["--version"]).stdout), format!("queztl-hv {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_manual_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&output(["completion", shell]).stdout).contains("QUEZTL_COMPLETE"), "{shell}");
    }
    let manual = text(&output(["man"]).stdout);
    assert!(manual.starts_with(".ie") && manual.contains("boot\\-timer"));
}

#[test]
fn the_doctor_gives_every_shortcoming_a_mend() {
    let output = output(["doctor", "--output", "json"]);
    let diagnosis: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = diagnosis["findings"].as_array().unwrap();
    assert!(findings.len() >= 9);
    for finding in findings {
        let is_good = finding["verdict"] == "good";
        assert!(is_good != finding["mend"].is_string(), "{finding}");
    }
    assert_eq!(output.status.code(), Some(if diagnosis["can_run"] == true { 0 } else { 4 }));
}

#[test]
fn the_doctor_tells_the_kind_of_kvm_with_a_reason() {
    let report = text(&output(["doctor"]).stdout);
    assert!(report.contains("million loop iterations a second") || report.contains("no KVM: "), "{report}");
}

/// What a shell offers behind these words.
fn offered(words: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = queztl();
    command.env("QUEZTL_HOME", folder.path()).env("QUEZTL_COMPLETE", "bash");
    command.env("_CLAP_COMPLETE_INDEX", words.len().to_string()).env("_CLAP_IFS", "\n");
    text(&command.args(["--", "queztl-hv"]).args(words).output().unwrap().stdout)
}

#[test]
fn a_shell_is_offered_commands_options_and_values() {
    assert_eq!(offered(&["snapsho"]), "snapshot\nsnapshots");
    assert!(offered(&["run", "--debug"]).contains("--debug-exit"));
    assert_eq!(offered(&["spawn", "a", "--on-crash", "rest"]), "restart\nrestore");
}

#[test]
fn completion_of_names_starts_no_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = queztl();
    command.env("QUEZTL_HOME", folder.path()).env("QUEZTL_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2");
    let output = command.args(["--", "queztl-hv", "start", ""]).output().unwrap();

    assert!(output.status.success() && !folder.path().join("daemon.log").exists());
}
