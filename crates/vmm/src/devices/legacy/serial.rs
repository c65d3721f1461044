//! A 16550A serial line with FIFOs.
//!
//! Promises:
//! - a vCPU never waits for the terminal: output goes through an [`Output`]. When the terminal is slow, the transmitter
//!   stops being empty, which guests wait for; nothing they send by the rules is lost;
//! - input waits until the guest takes it ([`Serial::write_input`] blocks its caller meanwhile): it is handed over only
//!   while the guest asserts RTS (or has never touched the modem lines), so what is typed before the guest's driver has
//!   started is not lost either.
//!
//! Source: National Semiconductor PC16550D data sheet.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::devices::output::{Output, Room};
use crate::irq::IrqLine;
use crate::snapshot::{Invalid, Persist};

const FIFO_SIZE: usize = 16;
/// Input bytes that wait for the guest at most.
const INPUT_LIMIT: usize = 4096;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_MODEM: u8 = 1 << 3;
const IER_WRITABLE: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_MODEM: u8 = 0x00;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR: u8 = 1 << 7;

const MCR_RTS: u8 = 1 << 1;
const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;

const LSR_RECEIVED: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Clear to send, data set ready, carrier detected.
const MSR_CONNECTED: u8 = 0xb0;

/// One serial line.
pub struct Serial {
    shared: Arc<Shared>,
}

struct Shared {
    uart: Mutex<Uart>,
    /// Signalled when the input queue has room again, or the line is closed.
    input_room: Condvar,
    output: Arc<Output>,
    /// The guest waits for a slow terminal instead of seeing a busy transmitter.
    waits: bool,
}

struct Uart {
    line: IrqLine,
    divisor: [u8; 2],
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    mcr_written: bool,
    scratch: u8,
    overrun: bool,
    /// Changes of the modem lines since the last look (loopback only: the far end never changes).
    modem_delta: u8,
    received: VecDeque<u8>,
    /// What the far end wants to send.
    input: VecDeque<u8>,
    /// The transmitter became empty since the guest last asked for the reason of an interrupt.
    empty_pending: bool,
    /// The output buffer takes no more.
    busy: bool,
    closed: bool,
}

impl Serial {
    /// A line that sends to `output`.
    pub fn new(line: IrqLine, output: Arc<Output>) -> Arc<Serial> {
        Self::start(line, output, false)
    }

    /// A line that looks the same to the guest however fast the terminal is: where it is too slow, the guest's write
    /// waits ([`Output::await_room`]). For guests whose runs must repeat exactly.
    pub fn patient(line: IrqLine, output: Arc<Output>) -> Arc<Serial> {
        Self::start(line, output, true)
    }

    fn start(line: IrqLine, output: Arc<Output>, waits: bool) -> Arc<Serial> {
        let uart = Mutex::new(Uart::new(line));
        let shared = Arc::new(Shared { uart, input_room: Condvar::new(), output: output.clone(), waits });
        let sender: Weak<Shared> = Arc::downgrade(&shared);
        output.tell(sender);
        Arc::new(Serial { shared })
    }

    /// Takes as much of `bytes` as there is room for; gives how many that were.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut uart = self.shared.lock_uart();
        let room = INPUT_LIMIT - uart.input.len().min(INPUT_LIMIT);
        let taken = bytes.len().min(room);
        uart.input.extend(&bytes[..taken]);
        uart.update();
        taken
    }

    /// Hands all of `bytes` to the guest, waiting until it takes them; false when the line was closed meanwhile.
    pub fn write_input(&self, mut bytes: &[u8]) -> bool {
        loop {
            bytes = &bytes[self.push_input(bytes)..];
            if bytes.is_empty() {
                return true;
            }
            let uart = self.shared.lock_uart();
            let full = |uart: &mut Uart| uart.input.len() >= INPUT_LIMIT && !uart.closed;
            let uart = self.shared.input_room.wait_while(uart, full).unwrap_or_else(PoisonError::into_inner);
            if uart.closed {
                return false;
            }
        }
    }

    /// Ends the line: callers of [`Serial::write_input`] return.
    pub fn close(&self) {
        self.shared.lock_uart().closed = true;
        self.shared.input_room.notify_all();
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock_uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a byte for the terminal; gives whether the buffer is full now.
    fn transmit(&self, byte: u8) -> bool {
        let full = self.output.push(&[byte]);
        if full && self.waits {
            self.output.await_room();
            return false;
        }
        full
    }
}

impl Room for Shared {
    fn room(&self) {
        let mut uart = self.lock_uart();
        if uart.busy {
            uart.busy = false;
            uart.empty_pending = true;
            uart.update();
        }
    }
}

impl Uart {
    fn new(line: IrqLine) -> Uart {
        Uart {
            line,
            divisor: [12, 0],
            ier: 0,
            fcr: 0,
            lcr: 3,
            mcr: 0,
            mcr_written: false,
            scratch: 0,
            overrun: false,
            modem_delta: 0,
            received: VecDeque::with_capacity(FIFO_SIZE),
            input: VecDeque::new(),
            empty_pending: false,
            busy: false,
            closed: false,
        }
    }

    fn loopback(&self) -> bool {
        self.mcr & MCR_LOOPBACK != 0
    }

    fn fifo_depth(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 { FIFO_SIZE } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        if self.fcr & FCR_ENABLE == 0 { 1 } else { [1, 4, 8, 14][usize::from(self.fcr >> 6)] }
    }

    /// Lets the far end send, and sets the interrupt line.
    fn update(&mut self) {
        let may_send = !self.loopback() && (self.mcr & MCR_RTS != 0 || !self.mcr_written);
        while may_send && self.received.len() < self.fifo_depth() {
            let Some(byte) = self.input.pop_front() else { break };
            self.received.push_back(byte);
        }
        self.line.set(self.reason() != IIR_NONE);
    }

    /// The most urgent reason to interrupt.
    fn reason(&self) -> u8 {
        if self.ier & IER_RECEIVED != 0 && !self.received.is_empty() {
            // Nothing trickles in here: a FIFO below its trigger level has timed out already.
            return if self.received.len() >= self.trigger_level() { IIR_RECEIVED } else { IIR_TIMEOUT };
        }
        if self.ier & IER_TRANSMITTER_EMPTY != 0 && self.empty_pending && !self.busy {
            return IIR_TRANSMITTER_EMPTY;
        }
        if self.ier & IER_MODEM != 0 && self.modem_delta != 0 {
            return IIR_MODEM;
        }
        IIR_NONE
    }

    fn modem_status(&self) -> u8 {
        if !self.loopback() {
            return MSR_CONNECTED;
        }
        // DTR -> DSR, RTS -> CTS, OUT1 -> RI, OUT2 -> DCD.
        let mcr = self.mcr;
        (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4
    }

    fn line_status(&mut self) -> u8 {
        let mut status = if self.busy { 0 } else { LSR_TRANSMITTER_EMPTY };
        if !self.received.is_empty() {
            status |= LSR_RECEIVED;
        }
        if std::mem::take(&mut self.overrun) {
            status |= LSR_OVERRUN;
        }
        status
    }

    fn read(&mut self, register: u64) -> u8 {
        match register {
            0 | 1 if self.lcr & LCR_DIVISOR != 0 => self.divisor[register as usize],
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => {
                let reason = self.reason();
                if reason == IIR_TRANSMITTER_EMPTY {
                    self.empty_pending = false;
                }
                reason | if self.fcr & FCR_ENABLE != 0 { IIR_FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => self.line_status(),
            6 => self.modem_status() | std::mem::take(&mut self.modem_delta),
            _ => self.scratch,
        }
    }

    /// Writes a register other than the transmitter.
    fn write(&mut self, register: u64, value: u8) {
        match register {
            0 | 1 if self.lcr & LCR_DIVISOR != 0 => self.divisor[register as usize] = value,
            1 => {
                let enabled = value & !self.ier & IER_TRANSMITTER_EMPTY != 0;
                self.ier = value & IER_WRITABLE;
                self.empty_pending |= enabled;
            }
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => self.write_mcr(value),
            7 => self.scratch = value,
            _ => (),
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (self.fcr ^ value) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVER != 0 {
            self.clear_receiver();
        }
        self.fcr = if value & FCR_ENABLE != 0 { value } else { 0 };
    }

    /// Empties the receiver. What came from the far end goes back to it: a driver that starts must not eat what was
    /// typed before.
    fn clear_receiver(&mut self) {
        let received = std::mem::take(&mut self.received);
        if !self.loopback() {
            received.into_iter().rev().for_each(|byte| self.input.push_front(byte));
        }
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_status();
        if (self.mcr ^ value) & MCR_LOOPBACK != 0 {
            self.clear_receiver();
        }
        self.mcr = value & MCR_WRITABLE;
        self.mcr_written = true;
        let changed = (before ^ self.modem_status()) >> 4;
        // Ring counts on its trailing edge only.
        let ring_ended = before & 0x40 != 0 && self.modem_status() & 0x40 == 0;
        self.modem_delta |= changed & 0b1011 | if ring_ended { 0b0100 } else { 0 };
    }

    fn loop_back(&mut self, byte: u8) {
        if self.received.len() < self.fifo_depth() {
            self.received.push_back(byte);
        } else {
            self.overrun = true;
        }
    }
}

/// What a snapshot holds of the line; output that was on its way has left by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSerial {
    divisor: [u8; 2],
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    mcr_written: bool,
    scratch: u8,
    overrun: bool,
    modem_delta: u8,
    received: Vec<u8>,
    input: Vec<u8>,
    empty_pending: bool,
}

impl Persist for Serial {
    type State = SavedSerial;

    fn save(&self) -> SavedSerial {
        let uart = self.shared.lock_uart();
        SavedSerial {
            divisor: uart.divisor,
            ier: uart.ier,
            fcr: uart.fcr,
            lcr: uart.lcr,
            mcr: uart.mcr,
            mcr_written: uart.mcr_written,
            scratch: uart.scratch,
            overrun: uart.overrun,
            modem_delta: uart.modem_delta,
            received: uart.received.iter().copied().collect(),
            input: uart.input.iter().copied().collect(),
            // A transmitter that was busy is empty in the machine that goes on.
            empty_pending: uart.empty_pending || uart.busy,
        }
    }

    fn restore(&self, saved: SavedSerial) -> Result<(), Invalid> {
        let fits = saved.received.len() <= FIFO_SIZE && saved.input.len() <= INPUT_LIMIT + FIFO_SIZE;
        Invalid::unless(fits, "serial line", "its queues are longer than it has room for")?;
        let mut uart = self.shared.lock_uart();
        uart.divisor = saved.divisor;
        uart.ier = saved.ier & IER_WRITABLE;
        uart.fcr = saved.fcr;
        uart.lcr = saved.lcr;
        uart.mcr = saved.mcr & MCR_WRITABLE;
        uart.mcr_written = saved.mcr_written;
        uart.scratch = saved.scratch;
        uart.overrun = saved.overrun;
        uart.modem_delta = saved.modem_delta & 0xf;
        uart.received = saved.received.into();
        uart.input = saved.input.into();
        uart.empty_pending = saved.empty_pending;
        uart.update();
        Ok(())
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.shared.lock_uart();
        let waiting = uart.input.len();
        super::read_bytes(offset, data, |register| uart.read(register));
        uart.update();
        let room = waiting >= INPUT_LIMIT && uart.input.len() < INPUT_LIMIT;
        drop(uart);
        if room {
            self.shared.input_room.notify_all();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.shared.lock_uart();
        super::write_bytes(offset, data, |register, value| {
            if register != 0 || uart.lcr & LCR_DIVISOR != 0 {
                uart.write(register, value);
                return;
            }
            if uart.loopback() {
                uart.loop_back(value);
            } else {
                uart.busy = self.shared.transmit(value);
            }
            uart.empty_pending = true;
        });
        uart.update();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::super::testing::Line;
    use super::*;
    use crate::devices::output::LIMIT_BYTES;
    use crate::devices::output::testing::Screen;

    struct Machine {
        serial: Arc<Serial>,
        line: Arc<Line>,
        out: Arc<Output>,
        output: Arc<Mutex<Vec<u8>>>,
        gate: Arc<Mutex<()>>,
    }

    fn machine() -> Machine {
        machine_with(Serial::new)
    }

    fn machine_with(new: fn(IrqLine, Arc<Output>) -> Arc<Serial>) -> Machine {
        let (line, screen) = (Arc::new(Line::default()), Screen::default());
        let out = screen.output();
        let serial = new(line.irq(), out.clone());
        Machine { serial, line, out, output: screen.bytes, gate: screen.gate }
    }

    impl Machine {
        fn read(&self, register: u64) -> u8 {
            let mut data = [0];
            self.serial.read(register, &mut data);
            data[0]
        }

        fn write(&self, register: u64, value: u8) {
            self.serial.write(register, &[value]);
        }
    }

    #[test]
    fn output_reaches_the_sink_in_order() {
        let m = machine();
        let text: Vec<u8> = (0..5000).map(|i| (i % 251) as u8).collect();
        text.iter().for_each(|byte| m.write(0, *byte));
        assert!(m.out.flush(Duration::from_secs(5)));
        assert_eq!(*m.output.lock().unwrap(), text);
    }

    #[test]
    fn a_slow_sink_makes_the_transmitter_busy_and_loses_nothing() {
        let m = machine();
        let closed = m.gate.lock().unwrap();
        let mut sent = 0;
        let start = Instant::now();
        while m.read(5) & 0x20 != 0 && start.elapsed() < Duration::from_secs(10) {
            m.write(0, b'x');
            sent += 1;
        }
        assert!(sent >= LIMIT_BYTES, "{sent}");
        m.write(1, IER_TRANSMITTER_EMPTY);
        assert!(!m.line.high());
        drop(closed);
        assert!(m.out.flush(Duration::from_secs(5)));
        while !m.line.high() && start.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        assert_eq!((m.read(2) & 0xf, m.read(5) & 0x20), (IIR_TRANSMITTER_EMPTY, 0x20));
        assert_eq!(m.output.lock().unwrap().len(), sent);
    }

    #[test]
    fn a_patient_line_never_shows_a_busy_transmitter() {
        let m = machine_with(Serial::patient);
        let closed = m.gate.lock().unwrap();
        let always_ready = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                (0..2 * LIMIT_BYTES).all(|_| {
                    m.write(0, b'x');
                    m.read(5) & 0x20 != 0
                })
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!sender.is_finished(), "the sender waits for the sink");
            drop(closed);
            sender.join().unwrap()
        });
        assert!(always_ready, "the transmitter was busy");
        assert!(m.out.flush(Duration::from_secs(5)));
        assert_eq!(m.output.lock().unwrap().len(), 2 * LIMIT_BYTES);
    }

    #[test]
    fn the_transmitter_interrupts_when_enabled_and_after_each_byte() {
        let m = machine();
        m.write(1, IER_TRANSMITTER_EMPTY);
        assert!(m.line.high());
        assert_eq!(m.read(2), IIR_TRANSMITTER_EMPTY);
        assert!(!m.line.high());
        assert_eq!(m.read(2), IIR_NONE);
        m.write(0, b'a');
        assert!(m.line.high());
    }

    #[test]
    fn input_interrupts_by_trigger_level_and_timeout() {
        let m = machine();
        m.write(2, FCR_ENABLE | 0x40);
        m.write(1, IER_RECEIVED);
        m.serial.push_input(b"abcde");
        assert_eq!(m.read(2), IIR_FIFO | IIR_RECEIVED);
        assert_eq!([m.read(0), m.read(0)], *b"ab");
        assert_eq!(m.read(2), IIR_FIFO | IIR_TIMEOUT);
        assert_eq!([m.read(0), m.read(0), m.read(0)], *b"cde");
        assert_eq!((m.read(2), m.line.high(), m.read(5) & 1), (IIR_FIFO | IIR_NONE, false, 0));
    }

    #[test]
    fn input_waits_for_rts_and_survives_the_start_of_the_driver() {
        let m = machine();
        m.write(4, 0x01);
        m.serial.push_input(b"typed early");
        m.write(2, FCR_ENABLE | FCR_CLEAR_RECEIVER);
        assert_eq!((m.read(5) & 1, m.read(0)), (0, 0));
        m.write(4, 0x0b);
        m.write(2, FCR_ENABLE | FCR_CLEAR_RECEIVER);
        let got: Vec<u8> = std::iter::from_fn(|| (m.read(5) & 1 != 0).then(|| m.read(0))).collect();
        assert_eq!(got, b"typed early");
    }

    #[test]
    fn a_full_input_queue_blocks_its_writer_until_the_guest_reads() {
        let m = machine();
        let (tx, rx) = mpsc::channel();
        std::thread::scope(|scope| {
            let serial = &m.serial;
            scope.spawn(move || tx.send(serial.write_input(&[b'y'; 3 * INPUT_LIMIT])).unwrap());
            assert!(rx.recv_timeout(Duration::from_millis(50)).is_err());
            let start = Instant::now();
            let mut got = 0;
            while got < 3 * INPUT_LIMIT && start.elapsed() < Duration::from_secs(20) {
                if m.read(5) & 1 != 0 {
                    assert_eq!(m.read(0), b'y');
                    got += 1;
                }
            }
            assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok(true));
        });
    }

    #[test]
    fn closing_frees_a_blocked_writer() {
        let m = machine();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| m.serial.write_input(&[0; 2 * INPUT_LIMIT]));
            std::thread::sleep(Duration::from_millis(20));
            m.serial.close();
            assert!(!writer.join().unwrap());
        });
    }

    #[test]
    fn loopback_passes_the_probe_of_a_16550a() {
        let m = machine();
        m.write(4, 0x1a);
        assert_eq!(m.read(6) & 0xf0, 0x90);
        m.write(2, FCR_ENABLE);
        assert_eq!(m.read(2) & 0xc0, 0xc0);
        m.write(0, 0x5a);
        assert_eq!((m.read(5) & 1, m.read(0)), (1, 0x5a));
        m.write(4, 0x0b);
        assert_eq!(m.read(6) & 0xf0, 0xb0);
        m.write(7, 0xa5);
        m.write(3, 0x83);
        m.write(0, 1);
        m.write(1, 2);
        assert_eq!((m.read(0), m.read(1), m.read(7)), (1, 2, 0xa5));
        m.write(3, 0x03);
        assert_eq!(m.read(1), 0);
        assert!(m.output.lock().unwrap().is_empty(), "loopback sends nothing");
    }
}
