//! Exceptions on their way from the instruction that raised them to the guest's handler.

/// Exception vectors (SDM vol. 3A §6.3).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// An exception with everything its delivery needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector number, 0..=31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// Faulting linear address; goes to CR2 for #PF, else unused.
    pub address: u64,
    /// A non-canonical address, or one past a segment's limit: #GP, but #SS if the access went through SS. The
    /// run loop knows the instruction and decides.
    pub segment_dependent: bool,
}

impl Exception {
    pub fn new(vector: u8) -> Exception {
        Exception { vector, error: None, address: 0, segment_dependent: false }
    }

    pub fn with_error(vector: u8, error: u32) -> Exception {
        Exception { error: Some(error), ..Exception::new(vector) }
    }

    /// #GP(`error`).
    pub fn gp(error: u32) -> Exception {
        Exception::with_error(vector::GP, error)
    }

    /// #UD.
    pub fn ud() -> Exception {
        Exception::new(vector::UD)
    }

    /// #PF at `address`.
    pub fn page_fault(address: u64, error: u32) -> Exception {
        Exception { vector: vector::PF, error: Some(error), address, segment_dependent: false }
    }

    /// An address that is not canonical: #GP(0), or #SS(0) through the stack segment.
    pub fn not_canonical(address: u64) -> Exception {
        Exception { address, segment_dependent: true, ..Exception::gp(0) }
    }
}

/// An exception was raised; the details wait in the CPU. Empty, so that results stay in registers on the hot path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised;

/// The result of anything that may raise an exception.
pub type Outcome<T> = Result<T, Raised>;
