//! A producer that is five times as fast as its drain, throttled: prints what happens every tenth of a second.

use queztl_adaptive_throttling::{Settings, Slice, Slices, Throttle};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut throttle = Throttle::new(Settings { buffer_bytes: 64 << 20, ..Settings::default() })?;
    let mut slices = Slices::new(10_000_000);
    let (mut buffered, mut intensity) = (0.0_f64, 0.0);
    for period in 0..100_u64 {
        let (Slice::Run(run_ns) | Slice::Rest(run_ns), _) = slices.next(intensity);
        buffered = (buffered + 500e6 * run_ns as f64 / 1e9 - 100e6 * 0.01).max(0.0);
        let decision = throttle.observe(buffered as u64, period * 10_000_000);
        intensity = decision.intensity;
        if period % 10 == 0 {
            println!(
                "{:4} ms  buffer {:3.0} %  throttle {:3.0} %",
                period * 10,
                decision.fill * 100.0,
                intensity * 100.0
            );
        }
    }
    Ok(())
}
