//! The server as a process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{MODEL, client};

/// Ends with the test.
pub struct Server {
    pub port: u16,
    child: Child,
    log: Arc<Mutex<String>>,
}

pub fn command(args: &[&str]) -> Command {
    command_of(MODEL, args)
}

fn command_of(model: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")) {
        command.env_remove(name);
    }
    command.args(["serve", model, "--device", "cpu"]).args(args).stdin(Stdio::null());
    command
}

impl Server {
    pub fn start(args: &[&str]) -> Server {
        Server::of(MODEL, args)
    }

    pub fn of(model: &str, args: &[&str]) -> Server {
        let mut child = command_of(model, args).args(["--port", "0"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let port = loop {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the server ended before it listened");
            if let Some((_, port)) = line.split_once("listening at http://127.0.0.1:") {
                let digits: String = port.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().unwrap();
            }
        };
        let kept = Arc::new(Mutex::new(String::new()));
        let lines = kept.clone();
        thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|line| *lines.lock().unwrap() += &(line + "\n"))
        });
        Server { port, child, log: kept }
    }

    /// What it has logged since it listens.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// How it ended, which is soon.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the server does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A value of `/metrics`, the sum of all its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = client::get(self.port, "/metrics").body;
        let lines = text.lines().filter(|line| line.starts_with(&format!("ocelli:{name}{{")));
        let values: Vec<f64> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no {name} in {text}");
        values.iter().sum()
    }

    /// Wait until a value of `/metrics` is what it should become.
    pub fn until(&self, name: &str, value: f64) {
        let start = Instant::now();
        while self.metric(name) != value {
            assert!(start.elapsed() < Duration::from_secs(20), "{name} is {} and not {value}", self.metric(name));
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
