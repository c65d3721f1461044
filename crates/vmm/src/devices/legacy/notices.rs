//! What the machine tells its guest while it runs: the register behind ACPI's generic event device (ACPI 6.5 §5.6.9).
//!
//! Promise: a notice that was raised reaches the guest once it looks, whether its driver is there yet or not; the line is
//! high until the register has been read. Raising a notice again before that is the same as raising it once.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::snapshot::{Invalid, Persist};

/// Something the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The generation identifier is another than before; see [`super::generation`].
    GenerationChanged,
}

impl Notice {
    const ALL: [Notice; 1] = [Notice::GenerationChanged];

    /// Its bit of the register.
    pub const fn bit(self) -> u8 {
        match self {
            Notice::GenerationChanged => 1 << 0,
        }
    }
}

/// The register and its interrupt line.
pub struct Notices {
    line: IrqLine,
    state: Mutex<State>,
}

/// What a snapshot holds of the register.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Bits of the notices that the guest has not read.
    pending: u8,
}

impl Notices {
    /// Nothing to tell; `line` is level-triggered.
    pub fn new(line: IrqLine) -> Notices {
        Notices { line, state: Mutex::default() }
    }

    /// Tells the guest.
    pub fn raise(&self, notice: Notice) {
        let mut state = self.lock();
        state.pending |= notice.bit();
        self.line.set(true);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Notices {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = std::mem::take(&mut state.pending);
        }
        self.line.set(false);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

impl Persist for Notices {
    type State = State;

    fn save(&self) -> State {
        self.lock().clone()
    }

    fn restore(&self, state: State) -> Result<(), Invalid> {
        let known = Notice::ALL.iter().fold(0, |bits, notice| bits | notice.bit());
        Invalid::unless(state.pending & !known == 0, "notices", "there is a notice that does not exist")?;
        let mut own = self.lock();
        self.line.set(state.pending != 0);
        *own = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::Line;
    use super::*;

    fn read(notices: &Notices) -> u8 {
        let mut data = [0xee];
        notices.read(0, &mut data);
        data[0]
    }

    #[test]
    fn a_notice_interrupts_until_it_is_read_and_is_read_once() {
        let line = Arc::new(Line::default());
        let notices = Notices::new(line.irq());
        notices.raise(Notice::GenerationChanged);
        notices.raise(Notice::GenerationChanged);
        assert!(line.high());
        assert_eq!(read(&notices), Notice::GenerationChanged.bit());
        assert_eq!((read(&notices), line.high(), line.edges()), (0, false, 1));
    }

    #[test]
    fn a_notice_that_was_not_read_is_there_after_a_restore() {
        let notices = Notices::new(Arc::new(Line::default()).irq());
        notices.raise(Notice::GenerationChanged);
        let line = Arc::new(Line::default());
        let restored = Notices::new(line.irq());
        restored.restore(notices.save()).unwrap();
        assert!(line.high());
        assert_eq!(read(&restored), Notice::GenerationChanged.bit());
    }

    #[test]
    fn unknown_notices_are_refused() {
        let notices = Notices::new(Arc::new(Line::default()).irq());
        assert!(notices.restore(State { pending: 0x80 }).is_err());
    }
}
