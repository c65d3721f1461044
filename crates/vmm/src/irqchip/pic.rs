//! The pair of 8259A interrupt controllers of a PC: fully and specially nested modes, rotation, special mask, automatic
//! end of interrupt, poll, and edge or level triggering per line (ELCR).
//!
//! A plain state machine: the caller holds the lock and looks at [`PicPair::output`] after each call. Source: Intel
//! 8259A data sheet (order number 231468).

/// Input of the first controller to which the second one is wired.
const CASCADE: u8 = 2;
/// The vector offset of a spurious interrupt.
const SPURIOUS: u8 = 7;

use serde::{Deserialize, Serialize};

/// What the next write to the data port means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Expects {
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pic {
    irr: u8,
    imr: u8,
    isr: u8,
    /// Present levels of the inputs.
    lines: u8,
    /// Inputs that are level-triggered (ELCR).
    level: u8,
    /// Bits of `level` that can be set.
    level_mask: u8,
    /// ICW1 asked for level triggering on all inputs.
    all_level: bool,
    base: u8,
    expects: Expects,
    single: bool,
    needs_icw4: bool,
    /// The input with the highest priority.
    first: u8,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    special_nested: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
}

impl Pic {
    fn level_triggered(&self, bit: u8) -> bool {
        self.all_level || self.level & bit != 0
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        let was = self.lines & bit != 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if self.level_triggered(bit) {
            self.irr = if high { self.irr | bit } else { self.irr & !bit };
        } else if high && !was {
            self.irr |= bit;
        }
    }

    /// Distance of the most urgent input in `set` from the highest priority; 8 when the set is empty.
    fn urgency(&self, set: u8) -> u8 {
        set.rotate_right(u32::from(self.first)).trailing_zeros() as u8
    }

    fn input_at(&self, urgency: u8) -> u8 {
        (urgency + self.first) & 7
    }

    /// The input that asks for service now, if any.
    fn requested(&self) -> Option<u8> {
        let urgency = self.urgency(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_nested {
            in_service &= !(1 << CASCADE);
        }
        (urgency < self.urgency(in_service)).then(|| self.input_at(urgency))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if !self.level_triggered(bit) {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.first = (input + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_icw1(&mut self, value: u8) {
        let all_level = value & 0x08 != 0;
        *self = Pic {
            lines: self.lines,
            level: self.level,
            level_mask: self.level_mask,
            imr: 0,
            base: self.base,
            all_level,
            expects: Expects::Icw2,
            single: value & 0x02 != 0,
            needs_icw4: value & 0x01 != 0,
            ..Pic::default()
        };
        self.irr = self.lines & if all_level { 0xff } else { self.level };
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            command @ (1 | 5) => {
                let urgency = self.urgency(if self.special_mask { self.isr & !self.imr } else { self.isr });
                if urgency < 8 {
                    self.end_of_interrupt(self.input_at(urgency), command == 5);
                }
            }
            command @ (3 | 7) => self.end_of_interrupt(named, command == 7),
            6 => self.first = (named + 1) & 7,
            _ => (),
        }
    }

    fn end_of_interrupt(&mut self, input: u8, rotate: bool) {
        self.isr &= !(1 << input);
        if rotate {
            self.first = (input + 1) & 7;
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        let icw4_or_mask = if self.needs_icw4 { Expects::Icw4 } else { Expects::Mask };
        match self.expects {
            Expects::Mask => self.imr = value,
            Expects::Icw2 => {
                self.base = value & 0xf8;
                self.expects = if self.single { icw4_or_mask } else { Expects::Icw3 };
            }
            // The wiring of the pair is fixed.
            Expects::Icw3 => self.expects = icw4_or_mask,
            Expects::Icw4 => {
                self.special_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.expects = Expects::Mask;
            }
        }
    }

    fn read_command(&mut self) -> u8 {
        if std::mem::take(&mut self.poll) {
            let Some(input) = self.requested() else { return 0 };
            self.acknowledge(input);
            return 0x80 | input;
        }
        if self.read_isr { self.isr } else { self.irr }
    }

    fn read_data(&mut self) -> u8 {
        if self.poll { self.read_command() } else { self.imr }
    }

    fn write_level(&mut self, value: u8) {
        self.level = value & self.level_mask;
        self.irr = (self.irr & !self.level) | (self.lines & self.level);
    }
}

/// One of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    First,
    Second,
}

/// Both controllers, the second wired to input 2 of the first.
/// Its fields are what a snapshot holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PicPair {
    first: Pic,
    second: Pic,
}

impl PicPair {
    pub(super) fn new() -> PicPair {
        // Masked, as firmware leaves them. IRQs 0, 1, 2, 8 and 13 cannot be level-triggered (PIIX4 §9.6).
        let with = |level_mask| Pic { level_mask, imr: 0xff, ..Pic::default() };
        PicPair { first: with(0xf8), second: with(0xde) }
    }

    /// Whether the wiring is that of a PC, and every number one that can be.
    pub(super) fn is_possible(&self) -> bool {
        let wired = PicPair::new();
        [(&self.first, &wired.first), (&self.second, &wired.second)].into_iter().all(|(pic, wired)| {
            pic.level_mask == wired.level_mask && pic.level & !pic.level_mask == 0 && pic.first < 8 && pic.base & 7 == 0
        })
    }

    /// Sets input `irq` (0..=15; 2 is the cascade and cannot be set).
    pub(super) fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE | 16.. => return,
            0..8 => self.first.set_line(irq, high),
            8.. => self.second.set_line(irq - 8, high),
        }
        self.cascade();
    }

    /// Whether the pair asks the processor for an interrupt.
    pub(super) fn output(&self) -> bool {
        self.first.requested().is_some()
    }

    /// The processor's acknowledge cycle: the vector to take, or `None` when nothing asks any more.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let input = self.first.requested()?;
        self.first.acknowledge(input);
        if input != CASCADE {
            return Some(self.first.base + input);
        }
        let second = self.second.requested();
        if let Some(input) = second {
            self.second.acknowledge(input);
        }
        self.cascade();
        Some(self.second.base + second.unwrap_or(SPURIOUS))
    }

    pub(super) fn read(&mut self, which: Which, data_port: bool) -> u8 {
        let pic = self.pic(which);
        let value = if data_port { pic.read_data() } else { pic.read_command() };
        self.cascade();
        value
    }

    pub(super) fn write(&mut self, which: Which, data_port: bool, value: u8) {
        let pic = self.pic(which);
        if data_port {
            pic.write_data(value);
        } else {
            pic.write_command(value);
        }
        self.cascade();
    }

    /// Edge/level control register: a set bit makes that input level-triggered.
    pub(super) fn read_elcr(&self, which: Which) -> u8 {
        match which {
            Which::First => self.first.level,
            Which::Second => self.second.level,
        }
    }

    pub(super) fn write_elcr(&mut self, which: Which, value: u8) {
        self.pic(which).write_level(value);
        self.cascade();
    }

    fn pic(&mut self, which: Which) -> &mut Pic {
        match which {
            Which::First => &mut self.first,
            Which::Second => &mut self.second,
        }
    }

    fn cascade(&mut self) {
        let asks = self.second.requested().is_some();
        // After an acknowledge the second controller may ask again at once, for a more urgent input; its output falls
        // in between, which the first one sees as a new edge.
        let latched = self.first.irr & (1 << CASCADE) != 0;
        if asks && !latched {
            self.first.set_line(CASCADE, false);
        }
        self.first.set_line(CASCADE, asks);
        if !asks {
            self.first.irr &= !(1 << CASCADE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Which::{First, Second};
    use super::*;

    /// The sequence by which Linux initialises the pair: vectors 0x30 and 0x38, then all masked but the given lines.
    fn as_linux_does(auto_eoi: bool, unmasked: u16) -> PicPair {
        let mut pics = PicPair::new();
        let icw4 = if auto_eoi { 0x03 } else { 0x01 };
        for (which, writes) in [(First, [0x11, 0x30, 0x04, icw4]), (Second, [0x11, 0x38, 0x02, icw4])] {
            for (i, value) in writes.into_iter().enumerate() {
                pics.write(which, i != 0, value);
            }
        }
        pics.write(First, true, !(unmasked as u8));
        pics.write(Second, true, !((unmasked >> 8) as u8));
        pics
    }

    #[test]
    fn an_edge_gives_one_interrupt_until_its_end() {
        let mut pics = as_linux_does(false, 1 << 4);
        pics.set_line(4, true);
        assert_eq!(pics.acknowledge(), Some(0x34));
        pics.set_line(4, false);
        pics.set_line(4, true);
        assert!(!pics.output(), "in service");
        pics.write(First, false, 0x64);
        assert_eq!(pics.acknowledge(), Some(0x34));
        pics.write(First, false, 0x20);
        assert!(!pics.output(), "an edge counts once");
    }

    #[test]
    fn more_urgent_inputs_interrupt_less_urgent_ones() {
        let mut pics = as_linux_does(false, 0xffff);
        pics.set_line(5, true);
        assert_eq!(pics.acknowledge(), Some(0x35));
        pics.set_line(7, true);
        assert!(!pics.output());
        pics.set_line(1, true);
        assert_eq!(pics.acknowledge(), Some(0x31));
        pics.write(First, false, 0x20);
        pics.write(First, false, 0x20);
        assert_eq!(pics.acknowledge(), Some(0x37));
    }

    #[test]
    fn the_second_controller_interrupts_through_the_cascade() {
        let mut pics = as_linux_does(false, 1 << 8 | 1 << 12 | 1 << 2);
        pics.set_line(12, true);
        assert_eq!(pics.acknowledge(), Some(0x3c));
        pics.set_line(8, true);
        assert!(!pics.output(), "the first controller serves its input 2");
        pics.write(Second, false, 0x64);
        pics.write(First, false, 0x62);
        assert_eq!(pics.acknowledge(), Some(0x38));
    }

    #[test]
    fn special_fully_nested_mode_lets_the_second_controller_interrupt_itself() {
        let mut pics = as_linux_does(false, 0xffff);
        for (i, value) in [0x11, 0x30, 0x04, 0x11].into_iter().enumerate() {
            pics.write(First, i != 0, value);
        }
        pics.set_line(12, true);
        assert_eq!(pics.acknowledge(), Some(0x3c));
        pics.set_line(8, true);
        assert_eq!(pics.acknowledge(), Some(0x38));
    }

    #[test]
    fn a_level_line_asks_again_after_the_end_while_it_is_high() {
        let mut pics = as_linux_does(false, 0xffff);
        pics.write_elcr(Second, 0xff);
        assert_eq!(pics.read_elcr(Second), 0xde);
        pics.set_line(9, true);
        assert_eq!(pics.acknowledge(), Some(0x39));
        pics.write(Second, false, 0x20);
        pics.write(First, false, 0x20);
        assert_eq!(pics.acknowledge(), Some(0x39));
        pics.set_line(9, false);
        pics.write(Second, false, 0x20);
        pics.write(First, false, 0x20);
        assert!(!pics.output());
    }

    #[test]
    fn masked_edges_are_kept_and_automatic_end_needs_no_command() {
        let mut pics = as_linux_does(true, 0);
        pics.set_line(0, true);
        pics.set_line(0, false);
        assert!(!pics.output());
        pics.write(First, true, 0xfe);
        assert_eq!(pics.acknowledge(), Some(0x30));
        pics.set_line(0, true);
        assert_eq!(pics.acknowledge(), Some(0x30));
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_through() {
        let mut pics = as_linux_does(false, 0xffff);
        pics.set_line(1, true);
        pics.acknowledge();
        pics.set_line(6, true);
        assert!(!pics.output());
        pics.write(First, true, 1 << 1);
        pics.write(First, false, 0x68);
        assert_eq!(pics.acknowledge(), Some(0x36));
    }

    #[test]
    fn poll_acknowledges_and_reports_the_input() {
        let mut pics = as_linux_does(false, 0xffff);
        pics.set_line(3, true);
        pics.write(First, false, 0x0c);
        assert_eq!(pics.read(First, false), 0x83);
        pics.write(First, false, 0x0b);
        assert_eq!(pics.read(First, false), 1 << 3, "in service");
        pics.write(First, false, 0x0a);
        assert_eq!(pics.read(First, false), 0, "no request left");
    }

    #[test]
    fn rotation_makes_the_served_input_the_least_urgent() {
        let mut pics = as_linux_does(false, 0xffff);
        pics.set_line(0, true);
        pics.acknowledge();
        pics.write(First, false, 0xa0);
        pics.set_line(0, false);
        pics.set_line(0, true);
        pics.set_line(7, true);
        assert_eq!(pics.acknowledge(), Some(0x37));
    }

    #[test]
    fn a_request_that_vanished_in_the_second_controller_is_spurious() {
        let mut pics = as_linux_does(false, 0xffff);
        pics.write_elcr(Second, 0x02);
        pics.set_line(9, true);
        pics.set_line(9, false);
        assert_eq!(pics.acknowledge(), None);
    }
}
