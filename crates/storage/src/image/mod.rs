//! What is done with images while no machine runs from them: making, describing, checking, converting, resizing.

mod check;
mod convert;
mod create;
mod info;
#[cfg(test)]
mod tests;

pub use check::{Report, check};
pub use convert::convert;
pub use create::{CreateConfig, Parent, create, resize};
pub use info::{Info, LinkInfo, info};
