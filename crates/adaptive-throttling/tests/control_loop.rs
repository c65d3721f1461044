//! The law as a control loop: a producer, a drain and a buffer, simulated in steps of one millisecond.

use queztl_adaptive_throttling::{Curve, Decision, Settings, Throttle};

const STEP_NS: u64 = 1_000_000;
const MIB: f64 = 1048576.0;

/// A producer and a drain, in bytes a second.
#[derive(Clone, Copy)]
struct Load {
    produced: f64,
    drained: f64,
}

struct Run {
    throttle: Throttle,
    buffered: f64,
    now_ns: u64,
    /// A decision takes so many steps to show in the producer.
    delay: usize,
    decisions: Vec<Decision>,
}

impl Run {
    fn new(settings: Settings, delay: usize) -> Run {
        Run { throttle: Throttle::new(settings).unwrap(), buffered: 0.0, now_ns: 0, delay, decisions: Vec::new() }
    }

    fn go(&mut self, load: Load, steps: usize) -> &[Decision] {
        let first = self.decisions.len();
        for _ in 0..steps {
            let felt = self.decisions.len().checked_sub(1 + self.delay);
            let intensity = felt.map_or(0.0, |index| self.decisions[index].intensity);
            let seconds = STEP_NS as f64 / 1e9;
            self.buffered += load.produced * (1.0 - intensity) * seconds;
            self.buffered = (self.buffered - load.drained * seconds).max(0.0);
            self.now_ns += STEP_NS;
            self.decisions.push(self.throttle.observe(self.buffered as u64, self.now_ns));
        }
        &self.decisions[first..]
    }
}

fn curves() -> [Curve; 3] {
    let custom = Curve::parse_points("0 0\n0.3 0.5\n1 1").unwrap();
    [Curve::Linear, Curve::exponential(2.0).unwrap(), custom]
}

fn settings(curve: Curve) -> Settings {
    Settings { buffer_bytes: 64 << 20, curve, ..Settings::default() }
}

#[test]
fn a_load_within_the_bandwidth_is_never_touched() {
    for curve in curves() {
        let mut run = Run::new(settings(curve), 20);
        let load = Load { produced: 90.0 * MIB, drained: 100.0 * MIB };
        assert!(run.go(load, 5000).iter().all(|d| d.intensity == 0.0));
    }
}

#[test]
fn an_overload_settles_where_producer_and_drain_are_equal_and_never_overflows() {
    for curve in curves() {
        let mut run = Run::new(settings(curve.clone()), 20);
        // Five times what the drain takes: the producer must lose four fifths.
        let decisions = run.go(Load { produced: 500.0 * MIB, drained: 100.0 * MIB }, 10_000);
        assert!(decisions.iter().all(|d| !d.overflow), "{curve}");
        let settled = &decisions[8000..];
        let mean = settled.iter().map(|d| d.intensity).sum::<f64>() / settled.len() as f64;
        assert!((mean - 0.8).abs() < 0.02, "{curve}: {mean}");
        let swing = settled.iter().map(|d| (d.intensity - mean).abs()).fold(0.0, f64::max);
        assert!(swing < 0.1, "{curve}: swings by {swing}");
    }
}

#[test]
fn an_overload_beyond_the_greatest_throttle_is_told() {
    let mut run = Run::new(settings(Curve::Linear), 20);
    // At 90 % throttle 200 remain, twice the drain.
    let decisions = run.go(Load { produced: 2000.0 * MIB, drained: 100.0 * MIB }, 3000);
    assert!(decisions.iter().any(|d| d.overflow));
}

#[test]
fn a_step_of_the_load_is_met_and_forgotten() {
    for curve in curves() {
        let mut run = Run::new(settings(curve.clone()), 20);
        run.go(Load { produced: 50.0 * MIB, drained: 100.0 * MIB }, 1000);
        assert!(
            run.go(Load { produced: 400.0 * MIB, drained: 100.0 * MIB }, 3000).iter().all(|d| !d.overflow),
            "{curve}"
        );
        let after = run.go(Load { produced: 50.0 * MIB, drained: 100.0 * MIB }, 4000);
        assert_eq!(after.last().unwrap().intensity, 0.0, "{curve}");
    }
}

#[test]
fn a_drain_that_stalls_makes_no_overflow_before_the_greatest_throttle_is_in_force() {
    let mut run = Run::new(settings(Curve::Linear), 20);
    run.go(Load { produced: 80.0 * MIB, drained: 100.0 * MIB }, 1000);
    let decisions = run.go(Load { produced: 80.0 * MIB, drained: 0.0 }, 8000);
    let full = decisions.iter().position(|d| d.overflow).expect("nothing drains");
    assert!(decisions[..full].iter().any(|d| d.intensity > 0.85));
    // 64 MiB at 80 MiB/s would be full after 800 steps; half as long again is what the throttle must win at least.
    assert!(full > 1200, "{full}");
}
