//! What is in deploy/ and in docs/serving.md fits the server: flags exist, arguments start it, ports and paths answer, metrics
//! are there under the names that alerts and the endpoint picker use, and objects find each other.

#![cfg(feature = "server")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The one object of a file.
fn object(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// The long flags of a subcommand, as its help shows them.
fn flags(subcommand: &str) -> BTreeSet<String> {
    let shown = Command::new(env!("CARGO_BIN_EXE_ocelli")).args([subcommand, "--help"]).output().unwrap();
    named(&String::from_utf8(shown.stdout).unwrap())
}

/// Whatever looks like a long flag.
fn named(text: &str) -> BTreeSet<String> {
    let of = |word: &str| {
        let flag: String = word.chars().take_while(|c| c.is_ascii_lowercase() || "-0123456789".contains(*c)).collect();
        (flag.len() > 3 && flag.starts_with("--") && !flag.starts_with("---")).then_some(flag)
    };
    text.split(|c: char| c.is_whitespace() || "`(|,=\"".contains(c)).filter_map(of).collect()
}

/// Metrics by their names, as PromQL and the endpoint picker write them.
fn metrics(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    text.split("ocelli:").skip(1).map(name).filter(|name| name.len() > 3).collect()
}

/// The container of the Deployment.
fn container(deployment: &Value) -> &Value {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    &containers[0]
}

/// A server on the demo, with the arguments of the Deployment otherwise.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let args = args.iter().map(|arg| match *arg {
            "/model" => "demo/llava-shapes",
            "--host=0.0.0.0" => "--host=127.0.0.1",
            "--port=8000" => "--port=0",
            // Lines with the address as it stands in the text.
            "--log-format=json" => "--log-format=text",
            other => other,
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
        std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        let mut child = command.args(args).args(["--device", "cpu"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = String::new();
        let port = log.find_map(|line| {
            said = format!("{said}{line}\n");
            line.split_once("listening at http://127.0.0.1:")?.1.trim().parse().ok()
        });
        let port = port.unwrap_or_else(|| panic!("the server ended before it listened:\n{said}"));
        std::thread::spawn(move || log.for_each(drop));
        Server { child, port }
    }

    /// Status and body of an answer.
    fn get(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_deployment_starts_a_server_that_answers_its_probes() {
    let deployment = object("deploy/kubernetes/deployment.yaml");
    let container = container(&deployment);
    let server = Server::start(&texts(&container["args"]));
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], container["ports"][0]["name"], "{probe}");
        assert_eq!(server.get(get["path"].as_str().unwrap()).0, 200, "{probe}");
    }
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    let (status, shown) = server.get(annotations["prometheus.io/path"].as_str().unwrap());
    assert_eq!(status, 200);
    assert_eq!(annotations["prometheus.io/port"], container["ports"][0]["containerPort"].to_string());

    let there = metrics(&shown);
    for file in
        ["deploy/kubernetes/endpoint-picker-values.yaml", "deploy/prometheus/ocelli.rules.yaml", "docs/serving.md"]
    {
        let used = metrics(&read(file));
        assert!(!used.is_empty(), "{file} names no metric");
        let missing: Vec<_> = used.difference(&there).collect();
        assert!(missing.is_empty(), "{file} names metrics that are not there: {missing:?}");
    }
}

#[test]
fn flags_are_those_of_the_command_line() {
    let serve = flags("serve");
    assert!(serve.contains("--max-num-seqs"), "{serve:?}");
    let own = |path: &str, others: &[&str]| {
        let unknown: Vec<_> = named(&read(path)).into_iter().filter(|flag| !serve.contains(flag)).collect();
        assert_eq!(unknown, others, "{path}");
    };
    own("deploy/kubernetes/deployment.yaml", &[]);
    own("deploy/systemd/ocelli.service", &[]);
    own("deploy/nginx/ocelli.conf", &[]);
    own("deploy/prometheus/ocelli.rules.yaml", &[]);
    // Those of cargo, docker, nvidia-smi and other subcommands.
    own("deploy/Dockerfile", &["--gpus", "--release", "--rm"]);
    own("docs/serving.md", &["--bench", "--gpus", "--memory", "--release", "--rm"]);
}

#[test]
fn every_environment_variable_of_the_deployment_is_one() {
    let help = Command::new(env!("CARGO_BIN_EXE_ocelli")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for file in
        ["deploy/Dockerfile", "deploy/kubernetes/deployment.yaml", "deploy/systemd/ocelli.service", "docs/serving.md"]
    {
        let text = read(file);
        let names =
            text.split(|c: char| !c.is_ascii_uppercase() && c != '_').filter(|word| word.starts_with("OCELLI_"));
        for name in names.filter(|name| *name != "OCELLI_REQUIRE_NVCC") {
            let read = ["=", "]"].iter().any(|end| help.contains(&format!("[env: {name}{end}")));
            assert!(read, "{file} names {name}, which nothing reads");
        }
    }
}

#[test]
fn objects_find_each_other() {
    let deployment = object("deploy/kubernetes/deployment.yaml");
    let service = object("deploy/kubernetes/service.yaml");
    let pool = object("deploy/kubernetes/inference-pool.yaml");
    let route = object("deploy/kubernetes/http-route.yaml");
    let values = object("deploy/kubernetes/endpoint-picker-values.yaml");
    let container = container(&deployment);
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &service["spec"]["selector"],
        &pool["spec"]["selector"]["matchLabels"],
        &values["router"]["modelServers"]["matchLabels"],
    ] {
        let selector = selector.as_object().unwrap();
        assert!(!selector.is_empty());
        assert!(selector.iter().all(|(key, value)| &labels[key] == value), "{selector:?} is not among {labels}");
    }
    let port = &container["ports"][0];
    assert!(texts(&container["args"]).contains(&format!("--port={}", port["containerPort"]).as_str()));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    assert_eq!(pool["spec"]["targetPorts"][0]["number"], port["containerPort"]);
    let backend = &route["spec"]["rules"][0]["backendRefs"][0];
    assert_eq!((&backend["kind"], &backend["name"]), (&pool["kind"], &pool["metadata"]["name"]));
    let version = format!("{}/v1", backend["group"].as_str().unwrap());
    assert_eq!(pool["apiVersion"], version.as_str());

    // The picker knows the pods' engine by the name that the values define.
    let epp = &values["router"]["epp"];
    let plugins = epp["pluginsCustomConfig"][epp["pluginsConfigFile"].as_str().unwrap()].as_str().unwrap();
    let plugins: Value = serde_saphyr::from_str(plugins).unwrap();
    let extractor = plugins["plugins"].as_array().unwrap().iter().find(|p| p["type"] == "core-metrics-extractor");
    assert_eq!(extractor.unwrap()["parameters"]["engineConfigs"][0]["name"], labels["llm-d.ai/engine-type"]);
}

/// The server's own deadline comes before the kill.
#[test]
fn there_is_time_to_end() {
    let deployment = object("deploy/kubernetes/deployment.yaml");
    let container = container(&deployment);
    let args = texts(&container["args"]);
    let drain = args.iter().find_map(|arg| arg.strip_prefix("--shutdown-timeout=")).unwrap();
    let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(pause + drain.parse::<u64>().unwrap() < grace);

    let unit = read("deploy/systemd/ocelli.service");
    let after = |key: &str| {
        let rest = unit.split(key).nth(1).unwrap_or_else(|| panic!("no {key}"));
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().unwrap()
    };
    assert!(after("--shutdown-timeout ") < after("TimeoutStopSec="));
}
