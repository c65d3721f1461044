use super::params::value;
use super::*;
use crate::Silent;

fn sample(extra: &[ExtraFile]) -> Result<Vec<u8>> {
    archive(b"busybox", extra)
}

fn extra(path: &str) -> ExtraFile {
    ExtraFile { path: path.to_owned(), mode: 0o644, content: b"x".to_vec() }
}

fn contains(archive: &[u8], text: &str) -> bool {
    archive.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let files = [extra("opt/a/b")];
    assert_eq!(sample(&files).unwrap(), sample(&files).unwrap());
    assert_ne!(sample(&files).unwrap(), sample(&[]).unwrap());
}

#[test]
fn parents_of_extra_files_come_before_them() {
    let bytes = sample(&[extra("opt/a/b")]).unwrap();
    let position = |name: &str| {
        let needle = format!("{name}\0");
        bytes.windows(needle.len()).position(|window| window == needle.as_bytes()).unwrap()
    };
    assert!(position("opt") < position("opt/a"));
    assert!(position("opt/a") < position("opt/a/b"));
}

#[test]
fn paths_that_leave_the_archive_are_refused() {
    for path in ["", "/etc/passwd", "a/../b", "a//b", "./a", "a\0b"] {
        assert!(matches!(sample(&[extra(path)]), Err(Error::Image(_))), "{path:?}");
    }
}

#[test]
fn init_is_static_and_small() {
    assert!(INIT.starts_with(b"\x7fELF"));
    assert!(!has_interpreter(INIT));
    assert!(INIT.len() < 32 << 10, "{} bytes", INIT.len());
}

#[test]
fn the_agent_is_static_and_small() {
    assert!(AGENT.starts_with(b"\x7fELF"));
    assert!(!has_interpreter(AGENT));
    assert!(AGENT.len() < 1536 << 10, "{} bytes", AGENT.len());
    assert!(contains(&sample(&[]).unwrap(), "sbin/queztl-agent\0"));
}

#[test]
fn a_dynamic_program_and_a_truncated_one_are_told_apart() {
    let dynamic = fs::read("/proc/self/exe").unwrap();
    assert!(has_interpreter(&dynamic));
    assert!(!has_interpreter(dynamic.get(..50).unwrap()));
    assert!(!has_interpreter(b"#!/bin/sh"));
}

#[test]
fn building_twice_gives_one_archive() {
    if !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: no busybox on this host");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();

    let first = build(&store, &[], &mut Silent).unwrap();
    let second = build(&store, &[], &mut Silent).unwrap();

    assert!(first.built && !second.built);
    assert_eq!(first.initramfs, second.initramfs);
    assert!(contains(&fs::read(&first.initramfs).unwrap(), "bin/sh\0"));
}

#[test]
fn parameters_are_read_with_and_without_quotes() {
    let line = b"console=ttyS0 queztl.run=\"echo a; echo b\" quiet queztl.net=off\n";
    assert_eq!(value(line, b"queztl.run"), Some(&b"echo a; echo b"[..]));
    assert_eq!(value(line, b"queztl.net"), Some(&b"off"[..]));
    assert_eq!(value(line, b"console"), Some(&b"ttyS0"[..]));
    assert_eq!(value(line, b"queztl"), None);
    assert_eq!(value(line, b"quiet"), None);
}

#[test]
fn quotes_around_the_whole_parameter_and_unclosed_ones_are_understood() {
    assert_eq!(value(b"\"queztl.run=ls -l /\" quiet", b"queztl.run"), Some(&b"ls -l /"[..]));
    assert_eq!(value(b"queztl.run=\"ls -l", b"queztl.run"), Some(&b"ls -l"[..]));
    assert_eq!(value(b"queztl.run=", b"queztl.run"), Some(&b""[..]));
    assert_eq!(value(b"", b"queztl.run"), None);
}

#[test]
fn the_last_value_of_a_parameter_counts() {
    assert_eq!(value(b"a=1 a=2", b"a"), Some(&b"2"[..]));
}
