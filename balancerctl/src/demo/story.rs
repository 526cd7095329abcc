//! What the demonstration shows, step by step, and what it checks on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;
use wire::control::{Change, Removal};
use wire::settings::{DEFAULT_POOL, ServerSettings};
use wire::{Client, Request, Response};

use super::DemoError;
use super::private::PrivateBalancer;
use super::server::Server;
use super::session::Session;
use crate::command::wait_for_end;
use crate::failure::Failure;
use crate::output::Output;
use crate::quantity::count;
use crate::text::{self, Align};

/// Names of the servers.
const NAMES: [&str; 3] = ["echo-1", "echo-2", "echo-3"];

/// The one that is killed.
const KILLED: usize = 1;

/// Clients: enough that every server has some, whatever ports the system chose.
const CLIENTS: u8 = 60;

/// How long the balancer may take to end when its clients have hung up.
const END_LIMIT_MS: u64 = 10_000;

/// The demonstration and what it needs of the private balancer.
#[derive(Debug)]
pub(super) struct Story {
    output: Output,
    directory: PathBuf,
    socket: PathBuf,
    listen: SocketAddr,
    started: String,
}

/// What came of it: printed for `demo --json`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Summary {
    kept: bool,
    clients: usize,
    servers: Vec<ServerSummary>,
    killed: SocketAddr,
    sessions_ended: usize,
    moved: usize,
    moved_from_others: usize,
    moved_as_explained: usize,
    moved_by_remove: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ServerSummary {
    name: &'static str,
    server: SocketAddr,
    clients_before: usize,
    clients_after: usize,
}

/// Which of the servers each client has: an index into [`NAMES`] by client.
type Served = Vec<usize>;

impl Story {
    /// A story about `balancer`.
    pub(super) fn new(output: Output, balancer: &PrivateBalancer) -> Self {
        let started = balancer.started();
        let mut listening = started.status.services.iter().flat_map(|service| &service.addresses);
        let listen = listening.next().copied().unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        Self {
            output,
            directory: balancer.directory().to_path_buf(),
            socket: started.socket.clone(),
            listen,
            started: format!("balancer started: listening on {listen}, pid {}", started.status.pid),
        }
    }

    /// Tells it.
    ///
    /// # Errors
    /// When something goes wrong, or the balancer does not keep its promise.
    pub(super) fn tell(self) -> Result<(), Failure> {
        let mut control = Client::connect(&self.socket)?;
        self.output.text(format_args!(
            "A private balancer lives in {} until this demo ends.\n\
             The commands below are what you would type; here, each goes with\n\
             --socket {}.",
            self.directory.display(),
            self.socket.display()
        ))?;
        self.command("start 127.0.0.1 0", &self.started)?;

        self.say("Three small servers, each of which answers with its own name, are added:")?;
        let servers: Result<Vec<_>, _> = NAMES.into_iter().map(Server::start).collect();
        let mut servers = servers.map_err(DemoError::Server)?;
        for server in &servers {
            let (pool, settings) = (DEFAULT_POOL.to_owned(), ServerSettings::default());
            let change = Change::Add { pool, server: server.address(), settings };
            self.change(&mut control, change, false, &line("add", server))?;
        }

        self.say(format_args!(
            "{CLIENTS} clients, {} to {}, connect to {},\nask who is there, and stay connected.",
            client(0),
            client(CLIENTS - 1),
            self.listen
        ))?;
        let (mut sessions, before) = self.visit()?;
        self.list(&mut control)?;

        self.say(format_args!("Why does {} get {}, and who would be next?", client(0), NAMES[before[0]]))?;
        let expected = self.explain_all(&mut control)?;

        self.say(format_args!("What if {} were taken away?", NAMES[KILLED]))?;
        let killed = servers[KILLED].address();
        let how = Removal::Wait { limit_ms: None };
        let remove = Change::Remove { pool: DEFAULT_POOL.to_owned(), server: killed, how };
        self.change(&mut control, remove.clone(), true, &line("remove --dry-run", &servers[KILLED]))?;

        servers[KILLED].kill();
        let sessions_ended = self.ask_again(&mut sessions, &before)?;
        self.say(format_args!(
            "Worse: {} is killed now. Its {} broke. The {} of the others go on:\n\
             every one was used again, and the same server answered.",
            NAMES[KILLED],
            count(sessions_ended as u64, "session"),
            sessions.len() - sessions_ended,
        ))?;
        sessions.into_iter().for_each(Session::end);

        let (sessions, after) = self.visit()?;
        self.say(format_args!(
            "All {CLIENTS} clients connect again. Who gets them now?\n\n{}",
            moves(&before, &after)
        ))?;
        self.list(&mut control)?;
        sessions.into_iter().for_each(Session::end);

        self.say(format_args!(
            "FAILED counts the connects that {} refused; its clients were sent on.\nThe balancer can be told, too:",
            NAMES[KILLED]
        ))?;
        self.change(&mut control, remove, false, &line("remove", &servers[KILLED]))?;
        let (sessions, told) = self.visit()?;

        let mut summary = Summary {
            kept: false,
            clients: before.len(),
            servers: servers.iter().enumerate().map(|one| summarise(one, &before, &after)).collect(),
            killed,
            sessions_ended,
            moved: moved(&before, &after).count(),
            moved_from_others: moved(&before, &after).filter(|client| before[*client] != KILLED).count(),
            moved_as_explained: moved(&before, &after)
                .filter(|client| Some(servers[after[*client]].address()) == expected[*client])
                .count(),
            moved_by_remove: moved(&after, &told).count(),
        };
        summary.check()?;
        summary.kept = true;
        self.say(format_args!(
            "All {CLIENTS} clients have connected once more. Checked: exactly the {} of\n\
             {} moved, each to the server that `explain` had named as next.\n\
             Nobody else moved, neither when it was killed nor when it was removed.",
            count(summary.moved as u64, "client"),
            NAMES[KILLED],
        ))?;

        self.stop(control, sessions)?;
        self.say(
            "The demo's directory is removed. To have your own balancer:\n\n  \
             balancerctl start 0.0.0.0 8080\n  balancerctl add ADDR PORT\n  balancerctl --help\n",
        )?;
        self.output.value(&summary)
    }

    /// A paragraph.
    fn say(&self, text: impl std::fmt::Display) -> Result<(), Failure> {
        self.output.text(format_args!("\n{text}"))
    }

    /// A command and its answer.
    fn command(&self, line: &str, answer: &str) -> Result<(), Failure> {
        self.output.text(format_args!("\n$ balancerctl {line}\n{answer}"))
    }

    /// Every client connects and asks who serves it.
    fn visit(&self) -> Result<(Vec<Session>, Served), Failure> {
        let mut sessions = Vec::new();
        let mut served = Served::new();
        for client in (0..CLIENTS).map(client) {
            let failed = |source| DemoError::Session { client, source };
            let mut session = Session::open(client, self.listen).map_err(failed)?;
            let answer = session.ask().map_err(failed)?;
            let server = answer.as_deref().and_then(|answer| NAMES.iter().position(|name| *name == answer));
            served.push(server.ok_or_else(|| match answer {
                Some(answer) => DemoError::Broken(format!("{client} was answered `{answer}`")),
                None => DemoError::Broken(format!("the connection of {client} was closed without an answer")),
            })?);
            sessions.push(session);
        }
        Ok((sessions, served))
    }

    /// Uses the open sessions again; gives how many have ended. Those must be all of the killed server and no other.
    fn ask_again(&self, sessions: &mut [Session], served: &Served) -> Result<usize, Failure> {
        let mut ended = 0;
        for (index, (session, &server)) in (0..CLIENTS).zip(sessions.iter_mut().zip(served)) {
            let client = client(index);
            let answer = session.ask().map_err(|source| DemoError::Session { client, source })?;
            match answer {
                None if server == KILLED => ended += 1,
                Some(name) if name == NAMES[server] && server != KILLED => {}
                _ => {
                    let what = format!("the session of {client} with {} had no business to change", NAMES[server]);
                    return Err(DemoError::Broken(what).into());
                }
            }
        }
        Ok(ended)
    }

    /// Shows the explanation for the first client, and gives for each client who would be next.
    fn explain_all(&self, control: &mut Client) -> Result<Vec<Option<SocketAddr>>, Failure> {
        let mut next = Vec::new();
        for index in 0..CLIENTS {
            let client = client(index);
            let request = Request::Explain { client: IpAddr::V4(client), port: 0, service: None };
            let Response::Explained(report) = control.call(&request)? else {
                return Err(Failure::Unexpected);
            };
            if index == 0 {
                self.command(&format!("explain {client}"), &text::explain(&report))?;
            }
            next.push(report.next.first().copied());
        }
        Ok(next)
    }

    fn change(&self, control: &mut Client, change: Change, dry_run: bool, line: &str) -> Result<(), Failure> {
        match control.call(&Request::Change { change, dry_run })? {
            Response::Changed(report) => self.command(line, &text::change(&report)),
            Response::Refused(refusal) => Err(Failure::Refused(refusal)),
            _ => Err(Failure::Unexpected),
        }
    }

    fn list(&self, control: &mut Client) -> Result<(), Failure> {
        match control.call(&Request::List { pool: DEFAULT_POOL.to_owned() })? {
            Response::List(report) => self.command("list", &text::list(&report)),
            _ => Err(Failure::Unexpected),
        }
    }

    /// Stops the balancer while clients are connected, who then hang up.
    fn stop(&self, mut control: Client, sessions: Vec<Session>) -> Result<(), Failure> {
        let Response::Stopping(report) = control.call(&Request::Stop { now: false, drain_ms: None })? else {
            return Err(Failure::Unexpected);
        };
        self.command("stop", &text::stopping(&report, false))?;
        sessions.into_iter().for_each(Session::end);
        wait_for_end(control, report.pid, END_LIMIT_MS)?;
        self.output.text(format_args!("balancer stopped, pid {}", report.pid))
    }
}

impl Summary {
    /// The promise of the ring: who loses a server moves, and nobody else.
    fn check(&self) -> Result<(), DemoError> {
        let lost = self.servers.iter().find(|server| server.server == self.killed).map_or(0, |one| one.clients_before);
        for (held, broken) in [
            (self.moved_from_others == 0, format!("{} clients of living servers moved", self.moved_from_others)),
            (self.moved == lost, format!("{} clients moved, the killed server had {lost}", self.moved)),
            (self.sessions_ended == lost, format!("{} sessions broke, {lost} should have", self.sessions_ended)),
            (
                self.moved_as_explained == lost,
                format!("{} of {lost} clients went where `explain` said", self.moved_as_explained),
            ),
            (self.moved_by_remove == 0, format!("{} clients moved at the removal", self.moved_by_remove)),
        ] {
            if !held {
                return Err(DemoError::Broken(broken));
            }
        }
        Ok(())
    }
}

/// The numbers of the clients that have another server than before.
fn moved(before: &Served, after: &Served) -> impl Iterator<Item = usize> {
    before.iter().zip(after).enumerate().filter(|(_, (before, after))| before != after).map(|(client, _)| client)
}

fn summarise((index, server): (usize, &Server), before: &Served, after: &Served) -> ServerSummary {
    let clients = |served: &Served| served.iter().filter(|one| **one == index).count();
    ServerSummary {
        name: server.name(),
        server: server.address(),
        clients_before: clients(before),
        clients_after: clients(after),
    }
}

/// The address of a client, from its number.
fn client(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, 0, index + 1)
}

/// The command line about a server, with its name as a comment.
fn line(verb: &str, server: &Server) -> String {
    format!("{verb} {} {}  # {}", server.address().ip(), server.address().port(), server.name())
}

/// Who had how many clients, and where they are now.
fn moves(before: &Served, after: &Served) -> String {
    let columns = [
        ("CLIENTS OF", Align::Left),
        ("BEFORE", Align::Right),
        ("STAYED", Align::Right),
        ("TO echo-1", Align::Right),
        ("TO echo-2", Align::Right),
        ("TO echo-3", Align::Right),
        ("NOW", Align::Right),
    ];
    let clients = |from: Option<usize>, to: Option<usize>| {
        let matching = before
            .iter()
            .zip(after)
            .filter(|(had, has)| from.is_none_or(|from| **had == from) && to.is_none_or(|to| **has == to));
        matching.count()
    };
    let rows = (0..NAMES.len()).map(|server| {
        let to = |other: usize| {
            if other == server { "-".to_owned() } else { clients(Some(server), Some(other)).to_string() }
        };
        let name = if server == KILLED { format!("{} (killed)", NAMES[server]) } else { NAMES[server].to_owned() };
        [
            name,
            clients(Some(server), None).to_string(),
            clients(Some(server), Some(server)).to_string(),
            to(0),
            to(1),
            to(2),
            clients(None, Some(server)).to_string(),
        ]
    });
    text::table(columns, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_moves_counts_everybody_once() {
        let (before, after) = (vec![0, 1, 1, 1, 2, 2], vec![0, 0, 2, 2, 2, 2]);
        let expected = "\
CLIENTS OF       BEFORE  STAYED  TO echo-1  TO echo-2  TO echo-3  NOW
echo-1                1       1          -          0          0    2
echo-2 (killed)       3       0          1          -          2    0
echo-3                2       2          0          0          -    4";
        assert_eq!(moves(&before, &after), expected);
    }

    fn summary() -> Summary {
        let [first, second] = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().expect("an address"));
        Summary {
            kept: false,
            clients: 5,
            servers: vec![
                ServerSummary { name: "echo-1", server: first, clients_before: 3, clients_after: 5 },
                ServerSummary { name: "echo-2", server: second, clients_before: 2, clients_after: 0 },
            ],
            killed: second,
            sessions_ended: 2,
            moved: 2,
            moved_from_others: 0,
            moved_as_explained: 2,
            moved_by_remove: 0,
        }
    }

    #[test]
    fn a_broken_promise_is_found() {
        assert!(summary().check().is_ok());
        for broken in [
            Summary { moved_from_others: 1, ..summary() },
            Summary { moved: 3, ..summary() },
            Summary { sessions_ended: 1, ..summary() },
            Summary { moved_as_explained: 1, ..summary() },
            Summary { moved_by_remove: 1, ..summary() },
        ] {
            assert!(matches!(broken.check(), Err(DemoError::Broken(_))), "{broken:?}");
        }
    }
}
