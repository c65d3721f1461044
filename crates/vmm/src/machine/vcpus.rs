//! The vCPU threads of a machine: started, paused, resumed and ended together.
//!
//! ```text
//!  begin ──> threads run ── pause: stop each through the seam ──> all parked
//!              ^   │                                                │
//!              │   └── end: stop each, threads end <────────────────┤
//!              └──────────────────── resume ────────────────────────┘
//! ```
//! A vCPU belongs to its thread, so a parked thread tells the state itself when it is asked ([`Vcpus::states`]).
//! A pause outlives a restart: the threads of the next run park before their first instruction.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Error;
use super::events::{End, Events};
use crate::accel::{Vcpu, VcpuExit, VcpuHandle};
use crate::affinity::{self, Pin};
use crate::confine;
use crate::snapshot::VcpuState;

/// What all vCPU threads have in common.
#[derive(Default)]
pub(super) struct Vcpus {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    paused: bool,
    /// The present run is over.
    ended: bool,
    threads: Vec<Thread>,
}

struct Thread {
    handle: Arc<dyn VcpuHandle>,
    /// The kernel's number of the thread, 0 until it runs.
    tid: Arc<AtomicI32>,
    /// What the host's scheduler tells of the thread (proc(5), `schedstat`).
    scheduling: Option<File>,
    /// Parked, or at its end: it executes nothing.
    quiet: bool,
    question: Question,
}

/// What is asked of a parked thread.
#[derive(Default)]
enum Question {
    #[default]
    None,
    /// The vCPU's state.
    State,
    Answered(Result<Box<VcpuState>, crate::accel::Error>),
    /// There will be no answer: the thread is at its end.
    Over,
}

/// Why there are no states.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoStates {
    #[error("vCPU {0} has stopped for good: the machine is about to end")]
    Over(usize),
    #[error("the vCPUs run: pause them first")]
    Running,
    #[error("a vCPU did not tell its state within {} s", .0.as_secs())]
    Late(Duration),
    #[error("vCPU {vcpu} cannot tell its state: {source}")]
    Accelerator { vcpu: usize, source: crate::accel::Error },
}

impl Vcpus {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread for each vCPU, on the host's CPUs that `pins` says; they give how many instructions they executed,
    /// where that is counted.
    pub fn begin(
        self: &Arc<Self>,
        vcpus: Vec<Box<dyn Vcpu>>,
        pins: &[Pin],
        events: &Arc<Events>,
    ) -> Result<Vec<JoinHandle<Option<u64>>>, Error> {
        let thread =
            |handle| Thread { handle, tid: Arc::default(), scheduling: None, quiet: false, question: Question::None };
        {
            let mut state = self.lock();
            state.ended = false;
            state.threads = vcpus.iter().map(|vcpu| thread(vcpu.handle())).collect();
        }
        let mut threads = Vec::with_capacity(vcpus.len());
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            match self.start(id, vcpu, pins.to_vec(), events.clone()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.end();
                    threads.into_iter().for_each(|thread| drop(thread.join()));
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    fn start(
        self: &Arc<Self>,
        id: usize,
        mut vcpu: Box<dyn Vcpu>,
        pins: Vec<Pin>,
        events: Arc<Events>,
    ) -> Result<JoinHandle<Option<u64>>, Error> {
        let vcpus = self.clone();
        let body = move || {
            vcpus.enter(id);
            match affinity::apply(&pins, id as u32) {
                Ok(()) => {
                    confine::enter(vcpu.thread());
                    vcpus.drive(id, &mut *vcpu, &events);
                }
                Err(error) => {
                    tracing::error!(vcpu = id, %error, "the vCPU cannot be kept on its CPUs: choose others");
                    events.note(End::Failed);
                }
            }
            vcpus.note_end(id);
            vcpu.instructions()
        };
        std::thread::Builder::new().name(format!("vcpu-{id}")).spawn(body).map_err(Error::Thread)
    }

    fn enter(&self, id: usize) {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let scheduling = File::open("/proc/thread-self/schedstat").ok();
        if let Some(thread) = self.lock().threads.get_mut(id) {
            thread.tid.store(tid, Ordering::Relaxed);
            thread.scheduling = scheduling;
        }
    }

    /// Runs the vCPU from pause to pause until the run ends.
    fn drive(&self, id: usize, vcpu: &mut dyn Vcpu, events: &Events) {
        while self.may_run(id, vcpu) {
            match vcpu.run() {
                VcpuExit::Stopped => {}
                VcpuExit::Shutdown => {
                    let state = vcpu.state();
                    tracing::debug!(vcpu = id, "triple fault in {state:#x?}");
                    return events.note(End::TripleFault);
                }
                VcpuExit::Failed => return events.note(End::Failed),
            }
        }
    }

    /// Parks while the machine is paused, and tells the vCPU's state when asked; false when the run is over.
    fn may_run(&self, id: usize, vcpu: &dyn Vcpu) -> bool {
        let mut state = self.lock();
        while state.paused && !state.ended {
            set_quiet(&mut state, id, true);
            self.changed.notify_all();
            let parked = |state: &mut State| state.paused && !state.ended && !is_asked(state, id);
            state = self.changed.wait_while(state, parked).unwrap_or_else(PoisonError::into_inner);
            if is_asked(&state, id) {
                drop(state);
                let answer = vcpu.local_apic().map(|local_apic| VcpuState { registers: vcpu.state(), local_apic });
                state = self.lock();
                state.threads[id].question = Question::Answered(answer.map(Box::new));
                self.changed.notify_all();
            }
        }
        set_quiet(&mut state, id, false);
        !state.ended
    }

    fn note_end(&self, id: usize) {
        let mut state = self.lock();
        set_quiet(&mut state, id, true);
        if let Some(thread) = state.threads.get_mut(id) {
            thread.question = Question::Over;
        }
        self.changed.notify_all();
    }

    /// The states of all vCPUs, which must be paused and stay so; waits for `limit` at the longest.
    pub fn states(&self, limit: Duration) -> Result<Vec<VcpuState>, NoStates> {
        let mut state = self.lock();
        if !state.paused || state.threads.iter().any(|thread| !thread.quiet) {
            return Err(NoStates::Running);
        }
        state.threads.iter_mut().filter(|thread| !thread.question.is_over()).for_each(Thread::ask);
        self.changed.notify_all();
        let waits = |state: &mut State| !state.ended && state.threads.iter().any(|thread| thread.question.is_open());
        let waited = self.changed.wait_timeout_while(state, limit, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let answers = state.threads.iter_mut().enumerate().map(|(vcpu, thread)| match thread.question.take() {
            Question::Answered(Ok(answer)) => Ok(*answer),
            Question::Answered(Err(source)) => Err(NoStates::Accelerator { vcpu, source }),
            Question::Over => Err(NoStates::Over(vcpu)),
            Question::None | Question::State => Err(NoStates::Late(limit)),
        });
        answers.collect()
    }

    /// Stops all vCPUs where they are and waits until they have, for `limit` at the longest; true if they all have. If
    /// not, they stop when they can.
    pub fn pause(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        state.paused = true;
        state.threads.iter().for_each(|thread| thread.handle.stop());
        let busy = |state: &mut State| state.paused && state.threads.iter().any(|thread| !thread.quiet);
        let waited = self.changed.wait_timeout_while(state, limit, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Makes all threads end; a pause stays in force for the next run.
    pub fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.threads.iter().for_each(|thread| thread.handle.stop());
        self.changed.notify_all();
    }

    /// For each vCPU of this run, in nanoseconds: the processor time of its thread, how long that waited for a processor,
    /// and how long the vCPU had nothing to do.
    pub fn times_ns(&self) -> Vec<[u64; 3]> {
        let times = |thread: &Thread| {
            let steal = thread.scheduling.as_ref().and_then(waited_ns).unwrap_or(0);
            [thread_time_ns(thread.tid.load(Ordering::Relaxed)), steal, thread.handle.halted_ns()]
        };
        self.lock().threads.iter().map(times).collect()
    }

    /// The processor time that each vCPU's thread has taken in this run, in nanoseconds.
    pub fn cpu_times_ns(&self) -> Vec<u64> {
        self.lock().threads.iter().map(|thread| thread_time_ns(thread.tid.load(Ordering::Relaxed))).collect()
    }
}

impl Thread {
    fn ask(&mut self) {
        self.question = Question::State;
    }
}

impl Question {
    fn is_open(&self) -> bool {
        matches!(self, Question::State)
    }

    fn is_over(&self) -> bool {
        matches!(self, Question::Over)
    }

    /// The answer; the next question can be asked.
    fn take(&mut self) -> Question {
        if self.is_over() { Question::Over } else { std::mem::take(self) }
    }
}

fn is_asked(state: &State, id: usize) -> bool {
    state.threads.get(id).is_some_and(|thread| thread.question.is_open())
}

fn set_quiet(state: &mut State, id: usize, quiet: bool) {
    if let Some(thread) = state.threads.get_mut(id) {
        thread.quiet = quiet;
    }
}

/// The second of the numbers that `schedstat` holds: how long the thread was ready and did not run.
fn waited_ns(scheduling: &File) -> Option<u64> {
    let mut text = [0; 128];
    let length = scheduling.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Processor time of a thread of this process; 0 if it does not exist.
fn thread_time_ns(tid: i32) -> u64 {
    /// A thread's clock, and of its kind the one that counts user and system time (Linux `include/linux/posix-timers.h`,
    /// `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED`).
    const THREAD_TIME: libc::clockid_t = 4 | 2;
    if tid == 0 {
        return 0;
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call; a clock that does not exist gives an error.
    let result = unsafe { libc::clock_gettime(!tid << 3 | THREAD_TIME, &mut time) };
    if result == 0 { time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    use super::*;
    use crate::accel::State as Registers;
    use crate::irqchip::LapicState;

    const LONG: Duration = Duration::from_secs(20);

    /// Counts as long as it runs.
    #[derive(Default)]
    struct Counter {
        count: AtomicU64,
        stop: Mutex<bool>,
    }

    impl VcpuHandle for Counter {
        fn notify(&self) {}
        fn stop(&self) {
            *self.stop.lock().unwrap() = true;
        }
    }

    struct Fake(Arc<Counter>);

    impl Vcpu for Fake {
        fn state(&self) -> Registers {
            Registers { instructions: self.0.count.load(Ordering::SeqCst), ..Registers::default() }
        }
        fn set_state(&mut self, _: &Registers) {}
        fn thread(&self) -> confine::Kind {
            confine::Kind::VcpuSoft
        }
        fn local_apic(&self) -> Result<LapicState, crate::accel::Error> {
            Ok(LapicState::default())
        }
        fn set_local_apic(&mut self, _: &LapicState) -> Result<(), crate::accel::Error> {
            Ok(())
        }
        fn run(&mut self) -> VcpuExit {
            while !std::mem::take(&mut *self.0.stop.lock().unwrap()) {
                self.0.count.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
            }
            VcpuExit::Stopped
        }
        fn handle(&self) -> Arc<dyn VcpuHandle> {
            self.0.clone()
        }
        fn instructions(&self) -> Option<u64> {
            Some(self.0.count.load(Ordering::SeqCst))
        }
    }

    struct Bench {
        vcpus: Arc<Vcpus>,
        counters: Vec<Arc<Counter>>,
        events: Arc<Events>,
    }

    impl Bench {
        fn new() -> Bench {
            let counters = (0..3).map(|_| Arc::<Counter>::default()).collect();
            Bench { vcpus: Arc::default(), counters, events: Arc::default() }
        }

        fn begin(&self) -> Vec<JoinHandle<Option<u64>>> {
            let vcpus = self.counters.iter().map(|counter| Box::new(Fake(counter.clone())) as Box<dyn Vcpu>);
            self.vcpus.begin(vcpus.collect(), &[], &self.events).unwrap()
        }

        fn counts(&self) -> Vec<u64> {
            self.counters.iter().map(|counter| counter.count.load(Ordering::SeqCst)).collect()
        }

        /// Waits until every vCPU has gone on from `before`.
        fn wait_beyond(&self, before: &[u64]) {
            let start = Instant::now();
            while self.counts().iter().zip(before).any(|(now, before)| now <= before) {
                assert!(start.elapsed() < LONG, "a vCPU does not go on");
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        fn end(self, threads: Vec<JoinHandle<Option<u64>>>) {
            self.vcpus.end();
            threads.into_iter().for_each(|thread| assert!(thread.join().unwrap().is_some()));
        }
    }

    #[test]
    fn paused_vcpus_execute_nothing_until_they_are_resumed() {
        let bench = Bench::new();
        let threads = bench.begin();
        for _ in 0..50 {
            bench.wait_beyond(&bench.counts());
            assert!(bench.vcpus.pause(LONG));
            let paused = bench.counts();
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(bench.counts(), paused);
            bench.vcpus.resume();
        }
        assert!(bench.vcpus.cpu_times_ns().iter().all(|time| *time > 0));
        bench.end(threads);
    }

    #[test]
    fn parked_threads_tell_their_vcpus_states_as_often_as_they_are_asked() {
        let bench = Bench::new();
        let threads = bench.begin();
        assert!(matches!(bench.vcpus.states(LONG), Err(NoStates::Running)));
        for _ in 0..50 {
            assert!(bench.vcpus.pause(LONG));
            for _ in 0..2 {
                let counts = bench.vcpus.states(LONG).unwrap().into_iter().map(|state| state.registers.instructions);
                assert_eq!(counts.collect::<Vec<_>>(), bench.counts());
            }
            bench.vcpus.resume();
        }
        assert!(bench.vcpus.pause(LONG));
        bench.vcpus.end();
        threads.into_iter().for_each(|thread| assert!(thread.join().is_ok()));
        assert!(matches!(bench.vcpus.states(LONG), Err(NoStates::Over(0))));
    }

    #[test]
    fn a_paused_machine_can_be_ended_and_its_next_run_begins_paused() {
        let bench = Bench::new();
        let threads = bench.begin();
        assert!(bench.vcpus.pause(LONG));
        bench.vcpus.end();
        threads.into_iter().for_each(|thread| assert!(thread.join().is_ok()));

        let before = bench.counts();
        let threads = bench.begin();
        assert!(bench.vcpus.pause(LONG));
        assert_eq!(bench.counts(), before);
        bench.vcpus.resume();
        bench.wait_beyond(&before);
        bench.end(threads);
    }
}
