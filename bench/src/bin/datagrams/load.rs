//! The load: questions that are answered, or datagrams that go one way, in a closed loop or at a fixed rate.
//!
//! One thread, the same for every balancer. In a closed loop a new question goes out for each answer, and for each
//! question that has none in time; at a fixed rate everything that is due goes out together, a few thousand times a
//! second.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bench::clock;
use bench::interrupt::Interrupt;

use crate::account::{Arrivals, Faults};
use crate::clients::{Clients, Place};
use crate::datagram::{Label, Way};

/// How long an answer may take before another question goes in the place of the one that has none.
const PATIENCE: Duration = Duration::from_millis(500);
/// The longest wait for an answer, so that the end of a run and an interrupt are noticed.
const WAIT: Duration = Duration::from_millis(10);
/// At a fixed rate, the time from one portion to the next.
const TICK: Duration = Duration::from_micros(200);
/// Datagrams that are lost at which a closed loop is given up: each of them stops a part of it for [`PATIENCE`].
const LOSS_LIMIT: usize = 5000;

/// What the clients send.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) flows: Flows,
    /// The length of a datagram.
    pub(crate) bytes: usize,
    /// So many datagrams of one flow are given to the kernel at once.
    pub(crate) train: u32,
    /// Whether each gets an answer.
    pub(crate) answered: bool,
}

/// Who sends them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flows {
    /// So many flows in turn.
    Kept(u32),
    /// A new flow for each datagram.
    New,
}

/// When they are sent.
#[derive(Clone, Copy)]
pub(crate) enum Drive {
    /// As many questions are under way all the time, the same number in each flow.
    Window(u32),
    /// So many datagrams a second.
    Rate(f64),
}

/// When it is over.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// After so long.
    Elapsed(Duration),
    /// When so many datagrams are sent.
    Sent(u64),
}

/// What a run of the load counted.
#[derive(Default)]
pub(crate) struct Tally {
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Answers, each counted once.
    pub(crate) answered: u64,
    /// All but those that were lost.
    pub(crate) faults: Faults,
    /// How long datagrams were sent.
    pub(crate) elapsed: Duration,
    /// How long each answer took.
    pub(crate) latencies: Vec<Duration>,
}

impl Shape {
    /// Sockets for its flows.
    pub(crate) fn clients(&self, target: SocketAddrV4) -> Result<Clients> {
        Clients::open(target, (self.train > 1).then_some(self.bytes))
    }
}

/// A run of the load.
pub(crate) struct Load<'a> {
    pub(crate) shape: Shape,
    pub(crate) drive: Drive,
    pub(crate) until: Until,
    /// The number of the run, which is in each datagram.
    pub(crate) run: u32,
    pub(crate) interrupt: &'a Interrupt,
}

/// Where a run is.
struct State {
    tally: Tally,
    flows: Vec<Flow>,
    /// In a closed loop of kept flows: which flow may send, once for each time that it may.
    free: Option<VecDeque<u32>>,
    /// The flow of the next datagram, where the flows take turns or each has one.
    turn: u32,
    /// Questions without an answer, and when they were sent.
    under_way: HashMap<(u32, u32), Instant>,
    /// Questions in the order in which they were sent, also some that have been answered.
    order: VecDeque<(Instant, u32, u32)>,
    given_up: usize,
}

/// A flow as its client sees it.
#[derive(Default)]
struct Flow {
    /// Datagrams sent: the number of the next one.
    sent: u32,
    answers: Arrivals,
}

impl Load<'_> {
    /// Sends until it is over, and waits for the answers that are under way.
    pub(crate) fn run(&self, clients: &mut Clients) -> Result<Tally> {
        let mut state = State::new(self.shape, self.drive);
        let mut bytes = vec![0; self.shape.bytes * self.shape.train as usize];
        let begin = clock::now();
        loop {
            let now = clock::now();
            state.tally.elapsed = now - begin;
            self.interrupt.check()?;
            if self.is_over(&state.tally) {
                break;
            }
            state.give_up(now, self.shape)?;
            for _ in 0..self.due(&state) {
                self.send(&mut state, clients, &mut bytes)?;
            }
            let wait = if matches!(self.drive, Drive::Window(_)) { WAIT } else { Duration::ZERO };
            if self.shape.answered {
                self.receive(&mut state, clients, wait)?;
            }
            if matches!(self.drive, Drive::Rate(_)) {
                clock::wait_until(now + TICK);
            }
        }
        while !state.under_way.is_empty() && clock::now() < begin + state.tally.elapsed + PATIENCE {
            self.receive(&mut state, clients, WAIT)?;
        }
        Ok(state.tally)
    }

    fn is_over(&self, tally: &Tally) -> bool {
        match self.until {
            Until::Elapsed(duration) => tally.elapsed >= duration,
            Until::Sent(sent) => tally.sent >= sent,
        }
    }

    /// How many datagrams, or trains, are to be sent now.
    fn due(&self, state: &State) -> u64 {
        let due = match (self.drive, self.shape.flows) {
            (Drive::Window(_), Flows::Kept(_)) => state.free.as_ref().map_or(0, VecDeque::len) as u64,
            (Drive::Window(count), Flows::New) => u64::from(count).saturating_sub(state.under_way.len() as u64),
            (Drive::Rate(rate), _) => {
                let by_now = (state.tally.elapsed.as_secs_f64() * rate) as u64;
                by_now.saturating_sub(state.tally.sent) / u64::from(self.shape.train)
            }
        };
        match self.until {
            Until::Elapsed(_) => due,
            Until::Sent(sent) => due.min(sent - state.tally.sent),
        }
    }

    fn send(&self, state: &mut State, clients: &Clients, bytes: &mut [u8]) -> Result<()> {
        let flow = state.next_flow(self.shape.flows);
        let place = flow as usize;
        if place >= state.flows.len() {
            state.flows.resize_with(place + 1, Flow::default);
        }
        let first = state.flows[place].sent;
        state.flows[place].sent += self.shape.train;
        for (sequence, datagram) in (first..).zip(bytes.chunks_exact_mut(self.shape.bytes)) {
            Label { run: self.run, flow, sequence, way: Way::Question }.write(datagram);
        }
        state.tally.sent += u64::from(self.shape.train);
        if self.shape.answered {
            let now = clock::now();
            for sequence in first..first + self.shape.train {
                state.under_way.insert((flow, sequence), now);
                state.order.push_back((now, flow, sequence));
            }
        }
        if !clients.send(flow, bytes)? {
            state.tally.faults.unsent += u64::from(self.shape.train);
        }
        Ok(())
    }

    fn receive(&self, state: &mut State, clients: &mut Clients, wait: Duration) -> Result<()> {
        let mut arrived = Vec::new();
        clients.receive(wait, |place, bytes| arrived.push((place, Label::read(bytes))))?;
        let now = clock::now();
        for (place, label) in arrived {
            state.take(now, place, label, clients, self);
        }
        Ok(())
    }
}

impl State {
    fn new(shape: Shape, drive: Drive) -> Self {
        let free = match (drive, shape.flows) {
            (Drive::Window(count), Flows::Kept(flows)) => Some((0..count).map(|index| index % flows).collect()),
            _ => None,
        };
        Self {
            tally: Tally::default(),
            flows: Vec::new(),
            free,
            turn: 0,
            under_way: HashMap::new(),
            order: VecDeque::new(),
            given_up: 0,
        }
    }

    fn next_flow(&mut self, flows: Flows) -> u32 {
        if let Some(free) = &mut self.free {
            return free.pop_front().expect("as many as are free are due");
        }
        let flow = self.turn;
        self.turn = match flows {
            Flows::Kept(count) => (flow + 1) % count,
            Flows::New => flow + 1,
        };
        flow
    }

    /// Lets `flow` send again, where that is what it waits for.
    fn release(&mut self, flow: u32) {
        self.free.iter_mut().for_each(|free| free.push_back(flow));
    }

    /// Takes an answer, or what came in place of one.
    fn take(&mut self, now: Instant, place: Place, label: Option<Label>, clients: &Clients, load: &Load<'_>) {
        let Some(label) = label else {
            self.tally.faults.altered += 1;
            return;
        };
        if label.run != load.run {
            return;
        }
        let known = self.flows.get_mut(label.flow as usize).filter(|flow| label.sequence < flow.sent);
        let (Some(flow), Way::Answer, true) = (known, label.way, clients.belongs(label.flow, place)) else {
            self.tally.faults.strayed += 1;
            return;
        };
        self.tally.answered += u64::from(self.tally.faults.count(flow.answers.take(label.sequence)));
        if let Some(sent) = self.under_way.remove(&(label.flow, label.sequence)) {
            self.tally.latencies.push(now - sent);
            self.release(label.flow);
        }
    }

    /// Lets other questions go in the place of those that have waited too long.
    fn give_up(&mut self, now: Instant, shape: Shape) -> Result<()> {
        while let Some((sent, flow, sequence)) = self.order.front().copied() {
            let answered = !self.under_way.contains_key(&(flow, sequence));
            if !answered && now - sent < PATIENCE {
                return Ok(());
            }
            self.order.pop_front();
            if !answered {
                self.under_way.remove(&(flow, sequence));
                self.release(flow);
                self.given_up += 1;
            }
        }
        ensure!(!shape.answered || self.given_up < LOSS_LIMIT, "{} questions have no answer", self.given_up);
        Ok(())
    }
}
