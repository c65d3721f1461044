//! Commands that outlive the connection of who started them, for a while: a page that is loaded anew finds its shell again.
//!
//! ```text
//!             ┌ output ─> what was shown last (bounded) ─┐
//!  command ───┤                                          ├─> the viewer of now; an earlier one is let go
//!             └ end ─────────────────────────────────────┘
//! ```
//! A command belongs to the client that started it, and is found by the word that the client gave it. Nobody else finds it.
//! One that nobody has looked at for [`PATIENCE`] is ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::Message;
use queztl_agent_client::Controller;
use queztl_api::{Code, EXEC_STDOUT, ExecNotice, Problem};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::{Chunk, Running};
use crate::api::answer::{Answer, Failure};
use crate::api::socket;

/// How long a command goes on without a viewer.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often it is looked whether somebody is there.
const LOOK: Duration = Duration::from_secs(10);
/// What is kept of a command's output, bytes.
const SCROLLBACK: usize = 256 << 10;
/// Messages under way to a viewer.
const MESSAGES_UNDER_WAY: usize = 8;
/// Most kept commands, and of these, of one client.
const MOST: usize = 64;
const MOST_EACH: usize = 16;

/// Who started it, in which machine, and what the client calls it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub client: String,
    pub vm: String,
    pub word: String,
}

/// All kept commands.
#[derive(Debug, Default)]
pub struct Kept(Mutex<HashMap<Key, Arc<Session>>>);

/// A command that runs.
#[derive(Debug)]
pub struct Session {
    pub input: Arc<tokio::sync::Mutex<Option<UnixStream>>>,
    pub controller: watch::Receiver<Option<Controller>>,
    screen: Mutex<Screen>,
}

#[derive(Debug)]
struct Screen {
    shown: VecDeque<u8>,
    viewer: Option<mpsc::Sender<Message>>,
    /// Since when nobody looks.
    alone: Option<Instant>,
}

impl Session {
    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A viewer from now on: what was shown last comes first. Another viewer's messages end.
    pub fn attach(&self) -> mpsc::Receiver<Message> {
        let (send, receive) = mpsc::channel(MESSAGES_UNDER_WAY);
        let mut screen = self.screen();
        if self.controller.borrow().is_some() {
            // The channel is empty, and has room for both.
            let _ = send.try_send(socket::text(&ExecNotice::Started));
        }
        if !screen.shown.is_empty() {
            let mut frame = vec![EXEC_STDOUT];
            frame.extend(&screen.shown);
            let _ = send.try_send(Message::Binary(frame.into()));
        }
        screen.viewer = Some(send);
        screen.alone = None;
        receive
    }

    /// Notes output, and gives who is to see it.
    fn show(&self, bytes: &[u8]) -> Option<mpsc::Sender<Message>> {
        let mut screen = self.screen();
        screen.shown.extend(bytes);
        let old = screen.shown.len().saturating_sub(SCROLLBACK);
        screen.shown.drain(..old);
        screen.viewer.clone()
    }

    /// Whether nobody has looked for too long.
    fn is_forgotten(&self) -> bool {
        let mut screen = self.screen();
        if screen.viewer.as_ref().is_some_and(|viewer| !viewer.is_closed()) {
            return false;
        }
        screen.viewer = None;
        screen.alone.get_or_insert_with(Instant::now).elapsed() > PATIENCE
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn find(&self, key: &Key) -> Option<Arc<Session>> {
        self.lock().get(key).cloned()
    }

    /// Keeps a command that has been started, until it ends.
    ///
    /// # Errors
    /// [`Code::Busy`], and the command is ended.
    pub fn keep(self: &Arc<Self>, key: Key, running: Running, input: Option<UnixStream>) -> Answer<Arc<Session>> {
        let (set, controller) = watch::channel(None);
        let screen = Screen { shown: VecDeque::new(), viewer: None, alone: None };
        let input = Arc::new(tokio::sync::Mutex::new(input));
        let session = Arc::new(Session { input, controller, screen: Mutex::new(screen) });
        {
            let mut all = self.lock();
            let own = all.keys().filter(|known| known.client == key.client).count();
            if all.len() >= MOST || own >= MOST_EACH {
                return Err(Failure::new(Code::Busy, "too many shells are kept: end some of them first"));
            }
            all.insert(key.clone(), session.clone());
        }
        let (kept, own) = (self.clone(), session.clone());
        tokio::spawn(async move {
            attend(running, &own, set).await;
            let mut all = kept.lock();
            // Its word may have been given to another one since.
            if all.get(&key).is_some_and(|known| Arc::ptr_eq(known, &own)) {
                all.remove(&key);
            }
        });
        Ok(session)
    }
}

/// Brings a command's output to its viewers until it ends, or nobody has looked for too long.
async fn attend(running: Running, session: &Session, set: watch::Sender<Option<Controller>>) {
    let Running { started, mut output, ended } = running;
    if let Ok(controller) = started.await {
        set.send_replace(Some(controller));
        tell(session, &ExecNotice::Started).await;
    }
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            chunk = output.recv() => {
                let Some(Chunk { bytes, .. }) = chunk else { break };
                if let Some(viewer) = session.show(&bytes) {
                    let mut frame = vec![EXEC_STDOUT];
                    frame.extend_from_slice(&bytes);
                    // A viewer that has gone has it in what was shown last when it comes back.
                    let _ = viewer.send(Message::Binary(frame.into())).await;
                }
            }
            _ = look.tick() => {
                if session.is_forgotten() {
                    if let Some(controller) = set.borrow().as_ref() {
                        controller.hang_up();
                    }
                    return;
                }
            }
        }
    }
    let notice = match ended.await {
        Ok(Ok(exit)) => super::exited(exit),
        Ok(Err(problem)) => ExecNotice::Problem { problem },
        Err(_) => ExecNotice::Problem { problem: Problem::new(Code::Internal, "a task for a guest vanished") },
    };
    tell(session, &notice).await;
    session.screen().viewer = None;
}

async fn tell(session: &Session, notice: &ExecNotice) {
    let viewer = session.screen().viewer.clone();
    if let Some(viewer) = viewer {
        // As above.
        let _ = viewer.send(socket::text(notice)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let (_, controller) = watch::channel(None);
        let screen = Screen { shown: VecDeque::new(), viewer: None, alone: None };
        Session { input: Arc::default(), controller, screen: Mutex::new(screen) }
    }

    fn bytes(message: Message) -> Vec<u8> {
        match message {
            Message::Binary(bytes) => bytes[1..].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_comes_back_sees_what_was_shown_last_and_another_is_let_go() {
        let session = session();
        session.show(b"one ");
        let mut first = session.attach();
        session.show(b"two");
        let mut second = session.attach();

        assert_eq!(bytes(first.try_recv().unwrap()), b"one ");
        assert_eq!(first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(bytes(second.try_recv().unwrap()), b"one two");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let session = session();
        session.show(&vec![1; SCROLLBACK]);
        session.show(b"last");
        let shown = bytes(session.attach().try_recv().unwrap());
        assert_eq!(shown.len(), SCROLLBACK);
        assert!(shown.ends_with(b"last"));
    }

    #[test]
    fn nobody_is_missed_at_once() {
        let session = session();
        assert!(!session.is_forgotten());
        session.screen().alone = Instant::now().checked_sub(PATIENCE * 2);
        assert!(session.is_forgotten());
        let viewer = session.attach();
        assert!(!session.is_forgotten());
        drop(viewer);
        assert!(!session.is_forgotten(), "its time begins anew");
    }
}
