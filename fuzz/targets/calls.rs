#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::within_limits(|| pool_worker::fuzz::calls(data)));
