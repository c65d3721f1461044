//! A control law that slows a producer down before the buffer behind it is full.
//!
//! Something produces (a virtual machine that writes to its memory), something slower drains (a connection to a backup), and
//! a buffer lies between them. [`Throttle`] looks at the buffer and says how much of the producer's speed to take away;
//! [`Slices`] turns that into times to run and to rest; [`Plan`] chooses interval and buffer for a connection as it is
//! measured to be.
//!
//! Promises:
//! - no I/O, no threads, no clock: the caller brings times and figures, and the same figures give the same answers;
//! - below its threshold the throttle does nothing at all; it reacts to a rising buffer at once and lets go slowly, so that
//!   the producer is not sent to and fro;
//! - where the producer at full throttle is slower than the drain, the buffer does not overflow; where even that is not
//!   enough, the answer says so ([`Decision::overflow`]) and the caller's emergency mode decides.
//!
//! ```text
//!  intensity
//!  max  ┤                      ╭──
//!       │                    ╭─╯      fill < threshold: none
//!       │                 ╭──╯        above: max · curve((fill − threshold) / (1 − threshold))
//!     0 ┼────────────────╯
//!       └────────────────┬───────┬─> fill of the buffer
//!                     threshold  1
//! ```
//! ```
//! use queztl_adaptive_throttling::{Curve, Settings, Throttle};
//!
//! let settings = Settings { buffer_bytes: 256 << 20, threshold: 0.6, max_intensity: 0.9, curve: Curve::Linear, ..Settings::default() };
//! let mut throttle = Throttle::new(settings)?;
//! assert_eq!(throttle.observe(100 << 20, 0).intensity, 0.0);
//! let decision = throttle.observe(230 << 20, 10_000_000);
//! assert!(decision.intensity > 0.6 && !decision.overflow);
//! # Ok::<(), queztl_adaptive_throttling::SettingsError>(())
//! ```

mod curve;
mod plan;
mod slices;
mod throttle;

pub use curve::{Curve, CurveError, MAX_POINTS};
pub use plan::{Link, Plan, Wishes};
pub use slices::{Slice, Slices};
pub use throttle::{Decision, Settings, SettingsError, Throttle};
