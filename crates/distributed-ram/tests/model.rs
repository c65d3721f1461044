//! Every order of events there can be, in a small group: three nodes, few epochs, messages that are lost, late, doubled and
//! reordered, nodes that crash and come back, a register whose changes are noticed late.

use std::collections::{BTreeMap, BTreeSet};

use queztl_distributed_ram::{
    Answer, Candidate, Epoch, Member, Node, Outcome, Owner, Phase, Promise, Register, Release, Rule, Term, Version,
};
use stateright::{Checker, Model, Property};

const NODES: Node = 3;

/// A group to be explored.
#[derive(Clone)]
struct Group {
    acks: usize,
    /// Bounds: cuts in a term, terms, crashes.
    cuts: u64,
    terms: Term,
    crashes: u8,
    /// What is wrong on purpose, to see that the checker sees it.
    fault: Option<Fault>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The register is written before the members have what has left.
    WriteEarly,
    /// A candidate asks too few.
    AskFew,
    /// A candidate does not wait for the lease to end.
    ClaimEarly,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    register: Register,
    /// Whether the owner of the register's term may believe that it holds its lease.
    lease: bool,
    nodes: Vec<Peer>,
    /// Messages stay, so that each may arrive never, once or many times, at any time.
    network: BTreeSet<Message>,
    /// Epochs of which something has left, with the term that let it out.
    left: BTreeSet<(Term, Epoch)>,
    /// What each term began from.
    bases: BTreeMap<Term, Version>,
    crashes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Peer {
    up: bool,
    owner: Option<Owner>,
    lease: bool,
    candidate: Option<Candidate>,
    /// Survives crashes.
    member: Member,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    Data { to: Node, from: Node, version: Version, base: Option<Epoch> },
    Acknowledged { to: Node, from: Node, version: Version },
    Fenced { to: Node, term: Term },
    Ask { to: Node, from: Node, term: Term },
    Promised { to: Node, from: Node, term: Term, copy: Option<Version> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Cut(Node),
    Release(Node),
    Propose(Node),
    Write(Node),
    Adopt(Node),
    Expose(Node),
    LeaseEnds,
    Claim(Node),
    TakeOver(Node),
    Crash(Node),
    Restart(Node),
    Deliver(Message),
}

impl World {
    fn peer(&mut self, node: Node) -> &mut Peer {
        &mut self.nodes[node as usize]
    }

    /// Whether a state contains what a term let out of an epoch.
    fn contains(&self, version: Version, left: (Term, Epoch)) -> bool {
        if version.term == left.0 {
            return version.epoch >= left.1;
        }
        let base = self.bases.get(&version.term).copied();
        version.term > left.0 && base.is_some_and(|base| self.contains(base, left))
    }

    fn contains_all(&self, version: Version) -> bool {
        self.left.iter().all(|left| self.contains(version, *left))
    }

    fn is_open(peer: &Peer) -> bool {
        let lets_out = |owner: &Owner| owner.releasable() != Release::Nothing;
        peer.up && peer.lease && peer.owner.as_ref().is_some_and(lets_out)
    }

    fn others(node: Node) -> impl Iterator<Item = Node> {
        (0..NODES).filter(move |other| *other != node)
    }
}

impl Model for Group {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let register = Register::new(0);
        let peer = |node| Peer {
            up: true,
            owner: (node == 0).then(|| Owner::new(&register, 0)),
            lease: node == 0,
            candidate: None,
            member: Member::default(),
        };
        let nodes = (0..NODES).map(peer).collect();
        let bases = [(1, Version::default())].into();
        vec![World { register, lease: true, nodes, network: BTreeSet::new(), left: BTreeSet::new(), bases, crashes: 0 }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for node in 0..NODES {
            self.actions_of(world, node, actions);
        }
        if world.lease {
            actions.push(Action::LeaseEnds);
        }
        let reaches = |message: &Message| match message {
            Message::Data { to, .. }
            | Message::Acknowledged { to, .. }
            | Message::Fenced { to, .. }
            | Message::Ask { to, .. }
            | Message::Promised { to, .. } => world.nodes[*to as usize].up,
        };
        actions.extend(world.network.iter().filter(|message| reaches(message)).cloned().map(Action::Deliver));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        self.step(&mut next, action);
        // What changes nothing need not be looked at again.
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Group>> {
        vec![
            Property::always("one owner lets out at a time", |_, world: &World| {
                world.nodes.iter().filter(|peer| World::is_open(peer)).count() <= 1
            }),
            Property::always("who goes on has all that was let out", |_, world: &World| {
                let begun = |(term, base): (&Term, &Version)| {
                    world.left.iter().filter(|left| left.0 < *term).all(|left| world.contains(*base, *left))
                };
                world.bases.iter().all(begun)
            }),
            Property::always("a protected group has enough copies to go on from", |_, world: &World| {
                let complete = |node: &&Node| {
                    world.nodes[**node as usize].member.copy().is_some_and(|copy| world.contains_all(copy))
                };
                let protected = world.register.phase == Phase::Protected;
                !protected || world.register.members.iter().filter(complete).count() >= world.register.acks
            }),
            Property::sometimes("a member goes on", |_, world: &World| world.bases.len() > 1),
            Property::sometimes("protection comes back after a failure", |_, world: &World| {
                world.register.term > 1 && world.register.phase == Phase::Protected
            }),
        ]
    }
}

impl Group {
    fn actions_of(&self, world: &World, node: Node, actions: &mut Vec<Action>) {
        let peer = &world.nodes[node as usize];
        if !peer.up {
            return actions.push(Action::Restart(node));
        }
        if world.crashes < self.crashes {
            actions.push(Action::Crash(node));
        }
        if let Some(owner) = &peer.owner {
            let cuts = owner.version().epoch - world.bases[&owner.term()].epoch;
            if cuts < self.cuts && !owner.is_fenced() {
                actions.push(Action::Cut(node));
            }
            actions.extend([Action::Release(node), Action::Propose(node), Action::Adopt(node), Action::Expose(node)]);
            if owner.may_write() || self.fault == Some(Fault::WriteEarly) && owner.proposed().is_some() {
                actions.push(Action::Write(node));
            }
        }
        let free = !world.lease || self.fault == Some(Fault::ClaimEarly);
        if free && peer.owner.is_none() && peer.member.copy().is_some() && world.register.term < self.terms {
            actions.push(Action::Claim(node));
        }
        if peer.candidate.is_some() {
            actions.push(Action::TakeOver(node));
        }
    }

    fn step(&self, world: &mut World, action: Action) {
        match action {
            Action::Cut(node) => cut(world, node),
            Action::Release(node) => release(world, node),
            Action::Propose(node) => {
                let acks = self.acks;
                with_owner(world, node, |owner| owner.propose(Rule { members: World::others(node).collect(), acks }));
            }
            Action::Write(node) => {
                let owner = world.peer(node).owner.as_ref();
                let Some((term, rule)) = owner.and_then(|owner| Some((owner.term(), owner.proposed()?.clone()))) else {
                    return;
                };
                if let Ok(register) = world.register.protect(node, term, rule.members, rule.acks) {
                    world.register = register;
                }
            }
            Action::Adopt(node) => {
                let register = world.register.clone();
                with_owner(world, node, |owner| owner.adopt(&register));
            }
            Action::Expose(node) => {
                let Some(term) = world.peer(node).owner.as_ref().map(Owner::term) else { return };
                if let Ok(register) = world.register.expose(node, term) {
                    world.register = register;
                }
            }
            Action::LeaseEnds => {
                world.lease = false;
                let term = world.register.term;
                for peer in &mut world.nodes {
                    if peer.owner.as_ref().is_some_and(|owner| owner.term() == term) {
                        peer.lease = false;
                    }
                }
            }
            Action::Claim(node) => self.claim(world, node),
            Action::TakeOver(node) => take_over(world, node),
            Action::Crash(node) => {
                world.crashes += 1;
                let member = world.peer(node).member.clone();
                *world.peer(node) = Peer { up: false, owner: None, lease: false, candidate: None, member };
            }
            Action::Restart(node) => world.peer(node).up = true,
            Action::Deliver(message) => deliver(world, message),
        }
    }

    fn claim(&self, world: &mut World, node: Node) {
        let Ok(register) = world.register.claim(node) else { return };
        let Some(promise) = world.peer(node).member.promise(register.term) else { return };
        let mut asked = register.clone();
        if self.fault == Some(Fault::AskFew) {
            asked.acks = asked.members.len();
        }
        world.peer(node).candidate = Some(Candidate::new(node, &asked, promise));
        let term = register.term;
        let ask = |to| Message::Ask { to, from: node, term };
        world.network.extend(World::others(node).map(ask));
        world.register = register;
        world.lease = false;
    }
}

fn with_owner(world: &mut World, node: Node, act: impl FnOnce(&mut Owner)) {
    if let Some(owner) = &mut world.peer(node).owner {
        act(owner);
    }
}

fn cut(world: &mut World, node: Node) {
    let Some(owner) = &mut world.peer(node).owner else { return };
    let epoch = owner.cut();
    let version = owner.version();
    let base = |to| owner.copy_of(to).filter(|known| known + 1 == epoch);
    let data = World::others(node).map(|to| Message::Data { to, from: node, version, base: base(to) });
    let data: Vec<Message> = data.collect();
    world.network.extend(data);
}

fn release(world: &mut World, node: Node) {
    let peer = world.peer(node);
    if !peer.lease {
        return;
    }
    let Some(owner) = &mut peer.owner else { return };
    let (term, running) = (owner.term(), owner.version().epoch + 1);
    match owner.release() {
        Release::All => drop(world.left.insert((term, running))),
        Release::UpTo(epoch) if epoch > world.bases[&term].epoch => drop(world.left.insert((term, epoch))),
        Release::UpTo(_) | Release::Nothing => {}
    }
}

fn take_over(world: &mut World, node: Node) {
    let Some(candidate) = &world.peer(node).candidate else { return };
    let (term, outcome) = (candidate.term(), candidate.outcome());
    let Outcome::TakeOver(version) = outcome else { return };
    let Ok(register) = world.register.take_over(node, term) else { return };
    world.bases.insert(term, version);
    let peer = world.peer(node);
    peer.candidate = None;
    peer.owner = Some(Owner::new(&register, version.epoch));
    peer.lease = true;
    world.register = register;
    world.lease = true;
}

fn deliver(world: &mut World, message: Message) {
    match message {
        Message::Data { to, from, version, base } => {
            // An owner's own copy is of no use to others while it runs.
            if world.peer(to).owner.is_some() {
                return;
            }
            match world.peer(to).member.staged(version, base) {
                Answer::Acknowledged(version) => {
                    world.network.insert(Message::Acknowledged { to: from, from: to, version });
                }
                Answer::Fenced(term) => drop(world.network.insert(Message::Fenced { to: from, term })),
                Answer::NeedsAll => {
                    if base.is_some() {
                        world.network.insert(Message::Data { to, from, version, base: None });
                    }
                }
            }
        }
        Message::Acknowledged { to, from, version } => {
            with_owner(world, to, |owner| owner.acknowledge(from, version));
        }
        Message::Fenced { to, term } => with_owner(world, to, |owner| owner.saw_term(term)),
        Message::Ask { to, from, term } => {
            if let Some(Promise { term, copy }) = world.peer(to).member.promise(term) {
                world.network.insert(Message::Promised { to: from, from: to, term, copy });
            }
        }
        Message::Promised { to, from, term, copy } => {
            if let Some(candidate) = &mut world.peer(to).candidate {
                candidate.promised(from, Promise { term, copy });
            }
        }
    }
}

const SMALL: Group = Group { acks: 1, cuts: 2, terms: 2, crashes: 1, fault: None };

/// Explores a group; how many states there were.
fn explore(group: Group, states: usize) -> impl Checker<Group> {
    group.checker().threads(2).target_state_count(states).spawn_bfs().join()
}

#[test]
fn no_order_of_events_loses_an_output_with_one_acknowledgement() {
    let checker = explore(SMALL, 400_000);
    checker.assert_no_discovery("one owner lets out at a time");
    checker.assert_no_discovery("who goes on has all that was let out");
    checker.assert_no_discovery("a protected group has enough copies to go on from");
    checker.assert_any_discovery("a member goes on");
    println!("{} states", checker.unique_state_count());
}

#[test]
fn no_order_of_events_loses_an_output_with_two_acknowledgements() {
    let checker = explore(Group { acks: 2, ..SMALL }, 400_000);
    checker.assert_no_discovery("one owner lets out at a time");
    checker.assert_no_discovery("who goes on has all that was let out");
    checker.assert_no_discovery("a protected group has enough copies to go on from");
    checker.assert_any_discovery("a member goes on");
    println!("{} states", checker.unique_state_count());
}

#[test]
fn the_checker_sees_a_register_that_is_written_too_early() {
    let checker = explore(Group { fault: Some(Fault::WriteEarly), ..SMALL }, 400_000);
    checker.assert_any_discovery("a protected group has enough copies to go on from");
}

#[test]
fn the_checker_sees_a_candidate_that_asks_too_few() {
    let checker = explore(Group { fault: Some(Fault::AskFew), ..SMALL }, 400_000);
    checker.assert_any_discovery("who goes on has all that was let out");
}

#[test]
fn the_checker_sees_a_candidate_that_does_not_wait_for_the_lease() {
    let checker = explore(Group { fault: Some(Fault::ClaimEarly), acks: 2, ..SMALL }, 400_000);
    checker.assert_any_discovery("one owner lets out at a time");
}
