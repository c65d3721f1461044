//! One local APIC as several threads use it: the lock, the host timer, the way to wake its processor, and a summary
//! that senders and the processor itself read without the lock.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use super::lapic::{Access, Lapic, Lint0};
use crate::clock::Clock;
use crate::timers::Timer;

/// Called when a vCPU may have something new to take.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

pub(super) struct LapicCell {
    guarded: Mutex<Guarded>,
    /// What addressing needs, see [`Routing`].
    routing: AtomicU64,
    /// Guest-physical address of the registers; [`NO_PAGE`] when they are not memory-mapped.
    page: AtomicU64,
    /// [`Lapic::has_event`].
    ready: AtomicBool,
    lint0: AtomicU8,
    timer: OnceLock<Timer>,
    waker: RwLock<Option<Waker>>,
}

struct Guarded {
    lapic: Lapic,
    /// What the host timer is armed for.
    armed: Option<u64>,
}

const NO_PAGE: u64 = u64::MAX;

impl LapicCell {
    pub(super) fn new(id: u32) -> LapicCell {
        let cell = LapicCell {
            guarded: Mutex::new(Guarded { lapic: Lapic::new(id), armed: None }),
            routing: AtomicU64::new(0),
            page: AtomicU64::new(NO_PAGE),
            ready: AtomicBool::new(false),
            lint0: AtomicU8::new(0),
            timer: OnceLock::new(),
            waker: RwLock::default(),
        };
        cell.with(|_| ());
        cell
    }

    /// Gives the cell its host timer, whose callback is [`LapicCell::expire`]. Once, before anything else.
    pub(super) fn set_timer(&self, timer: Timer) {
        let _ = self.timer.set(timer);
    }

    pub(super) fn set_waker(&self, waker: Waker) {
        *self.waker.write().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    pub(super) fn wake(&self) {
        let waker = self.waker.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// Works on the state under the lock; the host timer and the summary follow it.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Lapic) -> R) -> R {
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut guarded.lapic);
        self.follow(&mut guarded);
        result
    }

    /// The host timer fired.
    pub(super) fn expire(&self, clock: &Clock) {
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        guarded.armed = None;
        let wake = guarded.lapic.expire(clock);
        self.follow(&mut guarded);
        drop(guarded);
        if wake {
            self.wake();
        }
    }

    fn follow(&self, guarded: &mut Guarded) {
        let lapic = &guarded.lapic;
        let deadline = lapic.deadline_ns();
        if deadline != guarded.armed {
            if let Some(timer) = self.timer.get() {
                match deadline {
                    Some(at) => timer.arm_ns(at),
                    None => timer.disarm(),
                }
            }
            guarded.armed = deadline;
        }
        let page = match lapic.access() {
            Access::XApic(page) => page,
            Access::Disabled | Access::X2Apic => NO_PAGE,
        };
        let routing = Routing::of(lapic).0;
        if self.routing.load(Ordering::Relaxed) != routing {
            self.routing.store(routing, Ordering::Release);
        }
        self.page.store(page, Ordering::Relaxed);
        self.lint0.store(lapic.lint0() as u8, Ordering::SeqCst);
        self.ready.store(lapic.has_event(), Ordering::SeqCst);
    }

    /// Whether the processor has something to take if it accepts everything.
    pub(super) fn ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    pub(super) fn routing(&self) -> Routing {
        Routing(self.routing.load(Ordering::Acquire))
    }

    /// Offset of `address` in the memory-mapped registers, if it lies there.
    pub(super) fn offset_in_page(&self, address: u64) -> Option<u64> {
        let page = self.page.load(Ordering::Relaxed);
        (page != NO_PAGE && address & !0xfff == page).then_some(address & 0xfff)
    }

    pub(super) fn takes_ext_int(&self) -> bool {
        self.lint0.load(Ordering::SeqCst) == Lint0::ExtInt as u8
    }

    pub(super) fn lint0_makes_messages(&self) -> bool {
        self.lint0.load(Ordering::SeqCst) == Lint0::Message as u8
    }
}

/// What a sender needs to know of a local APIC to address it, in one word:
/// bit 0 reachable, 1 x2APIC mode, 2 software-enabled, 3 flat logical mode; 8..16 task priority; 32..64 logical
/// identifier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Routing(u64);

impl Routing {
    fn of(lapic: &Lapic) -> Routing {
        let flags =
            [lapic.access() != Access::Disabled, lapic.access() == Access::X2Apic, lapic.enabled(), lapic.flat()];
        let bits = flags.into_iter().enumerate().fold(0, |bits, (i, set)| bits | u64::from(set) << i);
        Routing(bits | u64::from(lapic.tpr()) << 8 | u64::from(lapic.logical_id()) << 32)
    }

    pub(super) fn reachable(self) -> bool {
        self.0 & 1 != 0
    }

    pub(super) fn x2apic(self) -> bool {
        self.0 & 2 != 0
    }

    pub(super) fn enabled(self) -> bool {
        self.0 & 4 != 0
    }

    pub(super) fn task_priority(self) -> u8 {
        (self.0 >> 8) as u8 >> 4
    }

    /// Whether a logical destination means this local APIC (SDM vol. 3A §11.6.2.2 and §11.12.10).
    pub(super) fn matches_logical(self, mask: u32, wide: bool) -> bool {
        let own = (self.0 >> 32) as u32;
        if self.x2apic() {
            return (wide && mask == u32::MAX) || (mask >> 16 == own >> 16 && mask & own & 0xffff != 0);
        }
        if mask & 0xff == 0xff {
            return true;
        }
        if self.0 & 8 != 0 {
            return mask & own & 0xff != 0;
        }
        let cluster = (mask >> 4) & 0xf;
        (cluster == 0xf || cluster == own >> 4) && mask & own & 0xf != 0
    }
}
