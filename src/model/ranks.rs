//! Ranks: the processes that train one model together, and what they tell each other.
//!
//! Which process this is, [`Place::from_environment`] reads from the variables that torchrun, Slurm's srun or a person
//! sets. [`Ranks`] are then connected as a star over TCP: rank 0 listens, the others come to it. That carries what is
//! small (where a run begins, losses, NCCL's id) on every backend, and gradients on those that keep them in ordinary
//! memory. Sums are taken on rank 0, in the order of the ranks, and sent back: all ranks hold the same bytes.
//!
//! Every message is framed: what it is and how long, both of which the receiver knows beforehand or bounds. Whoever
//! connects has to say who it is; anything else is hung up on. Links are neither encrypted nor authenticated, like those
//! of NCCL: they belong into a network of one's own.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::diag::{Diagnostic, Result};

/// What PyTorch takes where nothing is said.
const PORT: u16 = 29_500;
/// How long ranks wait for each other at the beginning.
const GATHERING: Duration = Duration::from_secs(600);
/// How long a rank may be silent: rank 0 may be writing a checkpoint of many gigabytes.
const SILENCE: Duration = Duration::from_secs(1800);
/// How often rank 0 says that it is still there, where it does what may take longer than that.
const SIGN: Duration = Duration::from_secs(60);
/// Longest message whose length the receiver does not know: 16 MiB.
const LONGEST: u64 = 1 << 24;
const GREETING: &[u8; 8] = b"flanc-r1";

/// Which of how many processes this is, and where rank 0 listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub rank: usize,
    pub size: usize,
    /// Number among the ranks of this machine: which device it takes.
    pub local: usize,
    /// Host and port.
    pub first: (String, u16),
}

impl Place {
    /// The place of this process.
    pub fn here() -> Result<Option<Place>> {
        Place::from_environment(|name| std::env::var(name).ok())
    }

    /// Reads the usual variables; `None` where the process is not one of several.
    ///
    /// | | by hand, torchrun | srun |
    /// | --- | --- | --- |
    /// | rank | `RANK` | `SLURM_PROCID` |
    /// | ranks | `WORLD_SIZE` | `SLURM_STEP_NUM_TASKS` |
    /// | rank within the machine | `LOCAL_RANK` | `SLURM_LOCALID` |
    /// | where rank 0 is | `MASTER_ADDR`, `MASTER_PORT` | the same, or the first of `SLURM_STEP_NODELIST` |
    ///
    /// torchrun's agent listens at `MASTER_PORT` itself (it sets `TORCHELASTIC_USE_AGENT_STORE`); rank 0 then takes the
    /// port after it.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Place>> {
        let first_of = |names: &[&'static str]| names.iter().find_map(|&name| Some((name, variable(name)?)));
        let number = |names: &[&'static str]| -> Result<Option<usize>> {
            let Some((name, text)) = first_of(names) else { return Ok(None) };
            text.trim().parse().map(Some).map_err(|_| {
                Diagnostic::error("ranks", format!("`{name}` is no number")).found(text).expected("0, 1, 2, …").into()
            })
        };
        let (ranks, sizes, locals) = if variable("WORLD_SIZE").is_some() {
            (&["RANK"][..], &["WORLD_SIZE"][..], &["LOCAL_RANK"][..])
        } else {
            // `SLURM_NTASKS` is no sign of other processes: a batch script has it too, with a `SLURM_PROCID` of 0, and is alone.
            (&["SLURM_PROCID"][..], &["SLURM_STEP_NUM_TASKS"][..], &["SLURM_LOCALID"][..])
        };
        let Some(size) = number(sizes)?.filter(|&size| size > 1) else { return Ok(None) };
        let Some(rank) = number(ranks)? else {
            // A shell within an allocation knows how many tasks there could be, but is none of them.
            if ranks == ["SLURM_PROCID"] {
                return Ok(None);
            }
            return Err(Diagnostic::error("ranks", format!("`WORLD_SIZE` is {size}, but `RANK` is not set"))
                .help("start each process with its own RANK, from 0; or unset WORLD_SIZE to train with one")
                .into());
        };
        if rank >= size {
            return Err(Diagnostic::error("ranks", format!("there is no rank {rank} among {size}"))
                .expected(format!("{} from 0 to {}", ranks[0], size - 1))
                .into());
        }
        let local = number(locals)?.unwrap_or(rank);
        let nodes = first_of(&["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]).filter(|_| ranks == ["SLURM_PROCID"]);
        let host = variable("MASTER_ADDR").or_else(|| Some(first_node(&nodes?.1)));
        let port = match number(&["MASTER_PORT"])? {
            None => PORT,
            Some(port) => {
                let agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
                u16::try_from(port + usize::from(agent)).map_err(|_| {
                    Diagnostic::error("ranks", "`MASTER_PORT` is no port")
                        .found(port.to_string())
                        .expected("1 to 65535")
                })?
            }
        };
        Ok(Some(Place { rank, size, local, first: (host.unwrap_or_else(|| "127.0.0.1".to_owned()), port) }))
    }
}

/// The first host of a list as Slurm writes it: `a[03-07,11]-x,b` → `a03-x`.
fn first_node(list: &str) -> String {
    let (name, rest) = list.split_at(list.find([',', '[']).unwrap_or(list.len()));
    let Some((range, rest)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return name.to_owned();
    };
    let number = range.split(['-', ',']).next().unwrap_or_default();
    format!("{name}{number}{}", rest.split(',').next().unwrap_or_default())
}

/// Where a process stands among those that it trains with, and its links to them.
pub struct Ranks {
    rank: usize,
    size: usize,
    local: usize,
    /// Of rank 0: to all others, in their order. Of the others: to rank 0.
    links: Vec<TcpStream>,
}

impl Ranks {
    /// One process by itself.
    pub fn alone() -> Ranks {
        Ranks { rank: 0, size: 1, local: 0, links: Vec::new() }
    }

    /// Waits until all ranks are there.
    pub fn connect(place: &Place) -> Result<Ranks> {
        let links = if place.rank == 0 { listen(place)? } else { vec![come(place)?] };
        for link in &links {
            let set = link.set_nodelay(true).and_then(|()| link.set_read_timeout(Some(SILENCE)));
            set.map_err(|e| Diagnostic::error("ranks", format!("a link cannot be set up: {e}")))?;
        }
        Ok(Ranks { rank: place.rank, size: place.size, local: place.local, links })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Number among the ranks of this machine.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Whether this is rank 0, which writes files and says what happens.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// What rank 0 does alone, however long it takes, while the others wait for what it [shares](Ranks::share): they are told
    /// that it is still there.
    pub fn alive_during<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.telling(SIGN, work)
    }

    fn telling<T>(&mut self, every: Duration, work: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            let (done, waits) = mpsc::channel::<()>();
            let links = &mut self.links;
            scope.spawn(move || {
                while waits.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    for link in &mut *links {
                        let _ = link.write_all(&header(Kind::Alive, 0)); // who is gone is noticed by what is shared then
                    }
                }
            });
            let _done = done; // dropped on every way out, before the scope waits for the thread
            work()
        })
    }

    /// What rank 0 gives goes to all.
    pub fn share(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        if self.rank > 0 {
            return self.receive(0, Kind::Share, None);
        }
        for other in 1..self.size {
            self.send(other, Kind::Share, &bytes)?;
        }
        Ok(bytes)
    }

    /// What each rank gives, in their order, goes to all.
    pub fn gather(&mut self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        let bytes = |numbers: &[f64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        let numbers = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect::<Vec<f64>>();
        let mut all = vec![own.to_vec()];
        if self.rank > 0 {
            self.send(0, Kind::Gather, &bytes(own))?;
            all.clear();
            for _ in 0..self.size {
                all.push(numbers(self.receive(0, Kind::Gather, None)?));
            }
            return Ok(all);
        }
        for other in 1..self.size {
            all.push(numbers(self.receive(other, Kind::Gather, None)?));
        }
        for other in 1..self.size {
            for part in &all {
                self.send(other, Kind::Gather, &bytes(part))?;
            }
        }
        Ok(all)
    }

    /// `start + Σ own` over the ranks, in their order; `start` is the same on all of them.
    pub fn sum(&mut self, start: Option<Vec<f32>>, own: &[f32]) -> Result<Vec<f32>> {
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        let length = Some(own.len() as u64 * 4);
        if self.rank > 0 {
            self.send(0, Kind::Sum, &bytes(own))?;
            let sum = self.receive(0, Kind::Sum, length)?;
            return Ok(sum.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect());
        }
        let mut sum = match start {
            None => own.to_vec(),
            Some(mut sum) => {
                sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                sum
            }
        };
        for other in 1..self.size {
            let theirs = self.receive(other, Kind::Sum, length)?;
            for (sum, their) in sum.iter_mut().zip(theirs.as_chunks().0) {
                *sum += f32::from_le_bytes(*their);
            }
        }
        let all = bytes(&sum);
        for other in 1..self.size {
            self.send(other, Kind::Sum, &all)?;
        }
        Ok(sum)
    }

    fn link(&mut self, other: usize) -> &mut TcpStream {
        &mut self.links[other.saturating_sub(1)]
    }

    fn send(&mut self, other: usize, kind: Kind, bytes: &[u8]) -> Result<()> {
        let header = header(kind, bytes.len());
        let link = self.link(other);
        link.write_all(&header).and_then(|()| link.write_all(bytes)).map_err(|e| gone(other, &e))
    }

    /// A message of `length` bytes; where that is not known, of at most [`LONGEST`].
    fn receive(&mut self, other: usize, kind: Kind, length: Option<u64>) -> Result<Vec<u8>> {
        let link = self.link(other);
        let mut header = header(Kind::Alive, 0);
        while header == self::header(Kind::Alive, 0) {
            link.read_exact(&mut header).map_err(|e| gone(other, &e))?;
        }
        let [found, size @ ..] = header;
        let size = u64::from_le_bytes(size);
        if found != kind as u8 || length.map_or(size > LONGEST, |length| size != length) {
            return Err(Diagnostic::error("ranks", format!("rank {other} is at another point of the run"))
                .expected(format!("{kind:?}, {}", length.map_or("short".to_owned(), |l| format!("{l} bytes"))))
                .found(format!("message {found} of {size} bytes"))
                .help("all ranks have to run the same flanc with the same command")
                .into());
        }
        let mut bytes = vec![0; size as usize];
        link.read_exact(&mut bytes).map_err(|e| gone(other, &e))?;
        Ok(bytes)
    }
}

/// What a message is about; a rank that is somewhere else in the run is noticed by it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Share = 1,
    Gather = 2,
    Sum = 3,
    /// Nothing: more is to come.
    Alive = 4,
}

/// What a message begins with: what it is about, and its length in bytes.
fn header(kind: Kind, length: usize) -> [u8; 9] {
    let mut header = [0; 9];
    header[0] = kind as u8;
    header[1..].copy_from_slice(&(length as u64).to_le_bytes());
    header
}

fn gone(other: usize, error: &io::Error) -> Box<Diagnostic> {
    Diagnostic::error("rank-lost", format!("rank {other} cannot be reached any more: {error}"))
        .help("what it printed last says why; the same command on all ranks goes on from the last checkpoint")
        .into()
}

/// Rank 0: takes in the others.
fn listen(place: &Place) -> Result<Vec<TcpStream>> {
    let port = place.first.1;
    let failed = |e: io::Error| {
        Diagnostic::error("ranks", format!("rank 0 cannot listen at port {port}: {e}"))
            .help("give all ranks another MASTER_PORT")
    };
    // On every interface: MASTER_ADDR is how others see this machine, and may be none of its own addresses.
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let began = Instant::now();
    let mut links: Vec<Option<TcpStream>> = (1..place.size).map(|_| None).collect();
    while let Some(missing) = links.iter().position(Option::is_none) {
        match listener.accept() {
            Ok((link, _)) => {
                if let Ok((rank, link)) = greeted(link, place)
                    && let Some(free @ None) = links.get_mut(rank.wrapping_sub(1))
                {
                    *free = Some(link);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(failed(e).into()),
        }
        if began.elapsed() > GATHERING {
            let there = links.iter().flatten().count() + 1;
            return Err(Diagnostic::error("ranks", format!("rank {} did not come", missing + 1))
                .found(format!("{there} of {} ranks after {} s", place.size, GATHERING.as_secs()))
                .help("each has to be started with RANK (or SLURM_PROCID), and to reach MASTER_ADDR:MASTER_PORT")
                .into());
        }
    }
    Ok(links.into_iter().flatten().collect())
}

/// Hears which rank has connected, and answers; whoever says something else is hung up on.
fn greeted(mut link: TcpStream, place: &Place) -> io::Result<(usize, TcpStream)> {
    link.set_nonblocking(false)?;
    link.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut said = [0; 24];
    link.read_exact(&mut said)?;
    let number = |at: usize| u64::from_le_bytes(*said[at..].first_chunk().expect("the greeting has three parts"));
    if said[..8] != *GREETING || number(16) != place.size as u64 {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    link.write_all(GREETING)?;
    Ok((number(8) as usize, link))
}

/// Any other rank: comes to rank 0, which may not be up yet.
fn come(place: &Place) -> Result<TcpStream> {
    let (host, port) = &place.first;
    let began = Instant::now();
    loop {
        let error = match connected(place) {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        if began.elapsed() > GATHERING {
            return Err(Diagnostic::error("ranks", format!("rank 0 cannot be reached at {host}:{port}: {error}"))
                .expected(format!("rank 0 of {} there, from MASTER_ADDR and MASTER_PORT", place.size))
                .help("is the name right, and does a firewall let the port through?")
                .into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn connected(place: &Place) -> io::Result<TcpStream> {
    let (host, port) = &place.first;
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for address in (host.as_str(), *port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(mut link) => {
                link.set_read_timeout(Some(Duration::from_secs(5)))?;
                let mut greeting = GREETING.to_vec();
                greeting.extend((place.rank as u64).to_le_bytes());
                greeting.extend((place.size as u64).to_le_bytes());
                link.write_all(&greeting)?;
                let mut answer = [0; 8];
                link.read_exact(&mut answer)?;
                if answer == *GREETING {
                    return Ok(link);
                }
                error = io::Error::new(io::ErrorKind::InvalidData, "something else listens there");
            }
            Err(e) => error = e,
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from_environment(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn places() {
        let is = |variables: &[(&str, &str)], rank: usize, size: usize, local: usize, host: &str, port: u16| {
            let found = place(variables).unwrap();
            assert_eq!(found, Some(Place { rank, size, local, first: (host.to_owned(), port) }), "{variables:?}");
        };
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "n1")];
        is(&torchrun, 3, 8, 1, "n1", 29_500);
        is(&[&torchrun[..], &[("MASTER_PORT", "1234")]].concat(), 3, 8, 1, "n1", 1234);
        let agent = [("MASTER_PORT", "1234"), ("TORCHELASTIC_USE_AGENT_STORE", "True")];
        is(&[&torchrun[..], &agent].concat(), 3, 8, 1, "n1", 1235);
        is(&[("RANK", "1"), ("WORLD_SIZE", "2")], 1, 2, 1, "127.0.0.1", 29_500);
        let srun = [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "2")];
        let nodes = [("SLURM_STEP_NODELIST", "gpu[07-09,12],cpu1")];
        is(&[&srun[..], &nodes].concat(), 5, 8, 2, "gpu07", 29_500);
        is(&[&srun[..], &nodes, &[("MASTER_ADDR", "here")]].concat(), 5, 8, 2, "here", 29_500);

        let batch_script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")];
        for none in [&[][..], &[("WORLD_SIZE", "1"), ("RANK", "0")], &[("SLURM_STEP_NUM_TASKS", "4")], &batch_script] {
            assert_eq!(place(none).unwrap(), None, "{none:?}");
        }
        for (wrong, says) in [
            (&[("WORLD_SIZE", "2")][..], "`RANK` is not set"),
            (&[("WORLD_SIZE", "2"), ("RANK", "2")], "no rank 2 among 2"),
            (&[("WORLD_SIZE", "two")], "`WORLD_SIZE` is no number"),
            (&[("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_PORT", "70000")], "`MASTER_PORT` is no port"),
        ] {
            let said = place(wrong).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn first_nodes() {
        for (list, first) in
            [("n1", "n1"), ("n1,n2", "n1"), ("n[1-4]", "n1"), ("a[03-07,11]-x,b", "a03-x"), ("a[7,9]", "a7"), ("", "")]
        {
            assert_eq!(first_node(list), first);
        }
    }

    /// Runs `work` on so many ranks, as threads.
    fn together<T: Send>(size: usize, port: u16, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let start = |rank| {
                let work = &work;
                let place = Place { rank, size, local: rank, first: ("127.0.0.1".to_owned(), port) };
                scope.spawn(move || work(Ranks::connect(&place).unwrap()))
            };
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// A port that was free a moment ago.
    fn port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn what_ranks_tell_each_other() {
        let all = together(3, port(), |mut ranks| {
            let rank = ranks.rank();
            let shared = ranks.share(vec![rank as u8; 5]).unwrap();
            let gathered = ranks.gather(&vec![rank as f64; rank]).unwrap();
            let own = [1e8, [1.0, 1e-9, -1e8][rank]];
            (shared, gathered, ranks.sum(Some(vec![0.5, -1.0]), &own).unwrap(), ranks.sum(None, &own).unwrap())
        });
        let sums: [f32; 2] = [0.5 + 1e8 + 1e8 + 1e8, -1.0 + 1.0 + 1e-9 - 1e8];
        for (shared, gathered, sum, in_place) in all {
            assert_eq!(shared, [0; 5]);
            assert_eq!(gathered, [vec![], vec![1.0], vec![2.0; 2]]);
            assert_eq!(sum, sums, "start first, then the ranks in their order");
            assert_eq!(in_place, [3e8, 1.0 + 1e-9 - 1e8]);
        }
    }

    /// Rank 0 may take longer than the others would wait, as long as it says that it is there.
    #[test]
    fn who_works_long_is_waited_for() {
        let waited = |every: u64| {
            together(2, port(), |mut ranks| {
                for link in &ranks.links {
                    link.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
                }
                if ranks.leads() {
                    let every = Duration::from_millis(every);
                    ranks.telling(every, || std::thread::sleep(Duration::from_millis(1500)));
                }
                ranks.share(vec![7]).ok()
            })
        };
        assert_eq!(waited(50), [Some(vec![7]), Some(vec![7])]);
        assert_eq!(waited(60_000)[1], None, "in silence it is given up on");
    }

    #[test]
    fn strangers_are_hung_up_on_and_lost_ranks_noticed() {
        let port = port();
        std::thread::scope(|scope| {
            let stranger = scope.spawn(move || {
                let mut link = loop {
                    match TcpStream::connect(("127.0.0.1", port)) {
                        Ok(link) => break link,
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                };
                link.write_all(b"GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n").unwrap();
                let mut said = Vec::new();
                let _ = link.read_to_end(&mut said); // a reset is as good as an end
                said
            });
            let outcomes = together(2, port, |mut ranks| match ranks.rank() {
                0 => ranks.sum(None, &[1.0]).map(|_| ()),
                _ => Ok(()), // leaves
            });
            assert!(stranger.join().unwrap().is_empty());
            let said = outcomes[0].as_ref().unwrap_err().to_string();
            assert!(said.contains("error[rank-lost]") && said.contains("rank 1"), "{said}");
        });
        let outcomes = together(2, self::port(), |mut ranks| match ranks.rank() {
            0 => ranks.gather(&[1.0]).map(|_| ()),
            _ => ranks.sum(None, &[1.0]).map(|_| ()),
        });
        let said = outcomes[0].as_ref().unwrap_err().to_string();
        assert!(said.contains("another point of the run"), "{said}");
    }
}
