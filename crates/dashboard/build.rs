//! Has this crate compiled again when the page was built again. Without optimisation the files are read when they are asked
//! for, and nothing has to be compiled.

fn main() {
    let debug = std::env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    println!("cargo:rerun-if-changed={}", if debug { "build.rs" } else { "../../dashboard/dist" });
}
