//! What a guest reported.

/// The debug exit device turns the guest's 0 into this status.
const PASSED: i32 = 1;

/// The cases of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Exit status of the machine; `None` when a signal ended it.
    pub status: Option<i32>,
    /// How many cases held.
    pub passed: usize,
    /// The cases that were skipped, with the reason.
    pub skipped: Vec<String>,
    /// The cases that failed, with what was seen.
    pub failed: Vec<String>,
    /// All that was printed.
    pub output: String,
}

impl Report {
    /// Reads the report of a guest from the machine's output.
    pub fn parse(status: Option<i32>, output: &str) -> Report {
        let lines = || output.lines().map(|line| line.trim_end_matches('\r'));
        let with = |word: &str| lines().filter_map(|l| l.strip_prefix(word).map(str::to_owned)).collect::<Vec<_>>();
        Report {
            status,
            passed: with("ok ").len(),
            skipped: with("skip "),
            failed: with("FAIL "),
            output: output.to_owned(),
        }
    }

    /// `Err` with a text that names what failed, unless all cases held and the guest said so.
    pub fn verdict(&self) -> Result<(), String> {
        if !self.failed.is_empty() {
            return Err(format!("{} of the guest's cases failed:\n  {}", self.failed.len(), self.failed.join("\n  ")));
        }
        if self.status != Some(PASSED) {
            let status = self.status.map_or("a signal".to_owned(), |s| format!("status {s}"));
            return Err(format!(
                "the machine ended with {status} before the guest's verdict; it had printed:\n{}",
                self.output
            ));
        }
        if self.passed == 0 {
            return Err("the guest checked nothing".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_counted_by_their_word() {
        let report = Report::parse(Some(1), "firmware\r\nok a\r\nskip b: no\nok c\nguest: passed\n");
        assert_eq!((report.passed, report.skipped.len(), report.failed.len()), (2, 1, 0));
        report.verdict().unwrap();
    }

    #[test]
    fn a_failed_case_is_named() {
        let report = Report::parse(Some(3), "ok a\nFAIL b: got 0x1, want 0x2\n");
        assert!(report.verdict().unwrap_err().contains("b: got 0x1, want 0x2"));
    }

    #[test]
    fn a_guest_that_dies_without_a_verdict_has_not_passed() {
        assert!(Report::parse(Some(8), "ok a\n").verdict().unwrap_err().contains("status 8"));
        assert!(Report::parse(None, "ok a\n").verdict().unwrap_err().contains("a signal"));
        assert!(Report::parse(Some(1), "").verdict().is_err());
    }
}
