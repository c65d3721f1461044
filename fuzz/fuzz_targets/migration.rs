#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| queztl_fuzz_targets::call("migration", data));
