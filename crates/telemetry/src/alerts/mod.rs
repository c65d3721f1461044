//! Which measures are worth an alert, and for how long.
//!
//! Promises:
//! - an alert fires once a measure has been beyond its rule's threshold for the rule's hold time without a break, and is
//!   resolved once it has not been for the rule's resolve time: a measure that flutters gives one alert, not many;
//! - there is one alert for each rule, machine and part of it at a time;
//! - a measure that is no longer taken is one that is not beyond its threshold;
//! - what is kept is bounded, whatever is measured.
//!
//! ```text
//!             beyond               hold time over                 not beyond             resolve time over
//! (nothing) ─────────> pending ────────────────────> firing ────────────────> clearing ────────────────────> (nothing)
//!     ^                   │ not beyond                  ^        beyond           │
//!     └───────────────────┘                             └─────────────────────────┘
//! ```

mod anomaly;
mod engine;
mod rules;

pub use anomaly::{MIN_BASELINE, robust_z_score};
pub use engine::{Engine, Measure, Target};
pub use rules::{Beyond, Rule, Rules};
