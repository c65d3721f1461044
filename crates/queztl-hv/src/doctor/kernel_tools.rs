//! What `queztl-hv kernel build` needs.

use std::path::Path;

use super::{Finding, has_program};

/// A program, or a file when it starts with a slash, and the Debian package that brings it.
const NEEDS: [(&str, &str); 12] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/include/gelf.h", "libelf-dev"),
    ("/usr/include/openssl/opensslv.h", "libssl-dev"),
];

/// Compiler and the like.
pub fn kernel_tools() -> Finding {
    let there = |need: &str| if need.starts_with('/') { Path::new(need).exists() } else { has_program(need) };
    let missing: Vec<_> = NEEDS.iter().filter(|(need, _)| !there(need)).collect();
    if missing.is_empty() {
        return Finding::good("kernel build", "all tools are installed");
    }
    let names: Vec<&str> = missing.iter().map(|(need, _)| *need).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    Finding::limited(
        "kernel build",
        format!("missing: {}", names.join(", ")),
        format!("as root: apt-get install {}; running virtual machines needs none of them", packages.join(" ")),
    )
}
