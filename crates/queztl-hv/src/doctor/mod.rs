//! `queztl-hv doctor`: can this host run virtual machines, how well, and what would mend what is missing.

mod cpu;
mod kernel_tools;
mod memory;
mod network;
mod system;

use serde::Serialize;

use crate::cli::OutputFormat;
use crate::output::{self, Made};
use crate::report::Failure;
use crate::status::Status;

/// How a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As good as it gets.
    Good,
    /// Virtual machines run, but slower or without a feature.
    Limited,
    /// No virtual machine can run.
    Fatal,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    /// What was found, with its measured reason.
    pub found: String,
    /// What to do about it, when there is something to do.
    pub mend: Option<String>,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Good, found: found.into(), mend: None }
    }

    fn limited(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Limited, found: found.into(), mend: Some(mend.into()) }
    }

    fn fatal(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Fatal, found: found.into(), mend: Some(mend.into()) }
    }
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    can_run: bool,
    findings: Vec<Finding>,
}

/// Looks, prints, and gives the status: success if virtual machines can run.
pub fn execute(format: OutputFormat) -> Result<Status, Failure> {
    let findings = vec![
        cpu::processor(),
        cpu::accelerator(),
        memory::ram(),
        memory::huge_pages(),
        memory::nodes(),
        memory::userfaultfd(),
        system::io_uring(),
        network::tap(),
        network::passt(),
        kernel_tools::kernel_tools(),
    ];
    let can_run = findings.iter().all(|finding| finding.verdict != Verdict::Fatal);
    let table = table(&findings, can_run);
    let names = findings.iter().map(|finding| finding.check.to_owned()).collect();
    let text = output::render(&Made { value: Diagnosis { can_run, findings }, table, names }, format)?;
    Ok(match crate::print(&text) {
        Status::Success if !can_run => Status::Failure,
        status => status,
    })
}

fn table(findings: &[Finding], can_run: bool) -> String {
    let mut text = String::new();
    for Finding { check, verdict, found, mend } in findings {
        let mark = match verdict {
            Verdict::Good => "good",
            Verdict::Limited => "limited",
            Verdict::Fatal => "FATAL",
        };
        text += &format!("{mark:7}  {check:12}  {found}\n");
        if let Some(mend) = mend {
            text += &format!("{:23}mend: {mend}\n", "");
        }
    }
    text + if can_run { "Virtual machines can run here.\n" } else { "Virtual machines cannot run here.\n" }
}

/// The first line of a file, or nothing.
fn first_line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

/// Whether a program is in `PATH` or in the system directories that users' paths leave out.
fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(extra).any(|folder: std::path::PathBuf| {
        rustix::fs::access(folder.join(name), rustix::fs::Access::EXEC_OK).is_ok() && folder.join(name).is_file()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shortcoming_comes_with_its_mend() {
        let text = table(&[Finding::limited("tap", "no", "do this"), Finding::good("cpu", "fine")], true);
        assert!(text.contains("limited  tap           no\n"));
        assert!(text.contains("mend: do this\n"));
        assert!(text.ends_with("can run here.\n"));
    }

    #[test]
    fn programs_are_found_and_missed() {
        assert!(has_program("sh"));
        assert!(!has_program("no-such-program-here"));
    }
}
