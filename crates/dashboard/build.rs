//! Has this crate compiled again when the page was built again.

fn main() {
    println!("cargo:rerun-if-changed=../../dashboard/dist");
}
