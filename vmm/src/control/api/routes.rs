//! The routes of the control socket and their handlers. Control socket thread for GET, and the
//! threads of `jobs` for the other methods.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use block::{OpenError, ResizeError};
use serde::de::DeserializeOwned;

use super::collect::{DiskSnapshot, MachineView, View};
use super::http::{Problem, Request, Response};
use super::metrics;
use super::model::{Outcome, Pause, Resize};
use crate::config::attached::{AttachRequest, AttachableDisk};
use crate::control::{CommandError, MachineCommand};
use crate::disks::{DiskError, HotplugError, ManagedDisk};

/// Longest time for the requests in flight of a pause with `drain`. Shorter than the client's.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_INTERVAL: Duration = Duration::from_millis(2);

/// A route. A test compares the routes with `resources/openapi.json`.
struct Route {
    method: &'static str,
    /// `{id}` is the name of a disk.
    path: &'static str,
    answer: fn(&View, &Parameters<'_>) -> Result<Response, Problem>,
}

/// The parameters of a request.
struct Parameters<'r> {
    id: &'r str,
    body: &'r [u8],
}

const ROUTES: [Route; 16] = [
    Route { method: "GET", path: "/v1/status", answer: status },
    Route { method: "GET", path: "/v1/disks/{id}", answer: disk },
    Route { method: "PUT", path: "/v1/disks/{id}", answer: attach },
    Route { method: "DELETE", path: "/v1/disks/{id}", answer: detach },
    Route { method: "POST", path: "/v1/disks/{id}/resize", answer: resize },
    Route { method: "DELETE", path: "/v1/disks/{id}/record", answer: stop_record },
    Route { method: "POST", path: "/v1/snapshot", answer: snapshot },
    Route { method: "POST", path: "/v1/mark", answer: mark },
    Route { method: "GET", path: "/v1/commit", answer: commits },
    Route { method: "POST", path: "/v1/commit", answer: commit },
    Route { method: "DELETE", path: "/v1/commit", answer: stop_commit },
    Route { method: "POST", path: "/v1/pause", answer: pause },
    Route { method: "POST", path: "/v1/resume", answer: resume },
    Route { method: "POST", path: "/v1/power-button", answer: power_button },
    Route { method: "GET", path: "/v1/events", answer: events },
    Route { method: "GET", path: "/metrics", answer: metrics_page },
];

/// Serves a request.
pub(super) fn answer(view: &View, request: &Request) -> Response {
    let mut found =
        ROUTES.iter().filter_map(|route| Some((route, match_path(route, &request.path)?)));
    let methods = found.clone().map(|(route, _)| route.method).collect::<Vec<_>>().join(", ");
    if methods.is_empty() {
        let detail = format!("unknown path {:?}", request.path);
        let mut paths = ROUTES.map(|route| route.path).to_vec();
        paths.dedup();
        return Problem::new(404, detail, format!("the paths are: {}", paths.join(", "))).into();
    }
    let Some((route, id)) = found.find(|(route, _)| route.method == request.method) else {
        let detail = format!("{} does not support {}", request.path, request.method);
        let problem = Problem::new(405, detail, format!("use {methods}"));
        return Response { allow: Some(methods), ..problem.into() };
    };
    (route.answer)(view, &Parameters { id, body: &request.body }).unwrap_or_else(Response::from)
}

/// The id in `path`, empty for a route without one; `None` if the path does not match.
fn match_path<'p>(route: &Route, path: &'p str) -> Option<&'p str> {
    let Some((before, after)) = route.path.split_once("{id}") else {
        return (route.path == path).then_some("");
    };
    let id = path.strip_prefix(before)?.strip_suffix(after)?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

impl Parameters<'_> {
    fn disk(&self, view: &View) -> Result<Arc<ManagedDisk>, Problem> {
        view.disks.find(self.id).ok_or_else(|| {
            let all = view.disks.all();
            let ids: Vec<_> = all.iter().map(|disk| disk.config.id()).collect();
            let remedy = match ids.as_slice() {
                [] => "the machine has no disks".to_owned(),
                ids => format!("the disks are: {}", ids.join(", ")),
            };
            Problem::new(404, format!("there is no disk {:?}", self.id), remedy)
        })
    }

    fn require_empty_body(&self) -> Result<(), Problem> {
        if self.body.is_empty() {
            return Ok(());
        }
        Err(Problem::new(400, "the request has a body", "send none"))
    }
}

fn status(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    Ok(Response::json(200, &view.status()))
}

fn events(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    Ok(Response::json(200, &view.events()))
}

fn disk(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    let disk = parameters.disk(view)?;
    disk_response(200, &disk)
}

fn disk_response(status: u16, disk: &ManagedDisk) -> Result<Response, Problem> {
    Ok(Response::json(status, &DiskSnapshot::of(disk).to_model()))
}

/// Blocks until the host has opened the image.
fn attach(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    let machine = require_machine(view)?;
    let keys = serde_json::from_slice(parameters.body).map_err(|error| {
        let remedy = "send the keys of a disk without its id, such as \
                      {\"path\": \"/images/data.img\", \"bus\": \"virtio-scsi\"}";
        Problem::new(400, format!("the body is not a disk: {error}"), remedy)
    })?;
    let request = AttachRequest { id: parameters.id.to_owned(), keys };
    let disk = AttachableDisk::new(request).map_err(|report| {
        let (detail, remedy) = report.summary();
        Problem::new(400, detail, remedy)
    })?;
    let disk = machine.hotplug.attach(disk).map_err(|error| hotplug_problem(&error))?;
    disk_response(201, &disk)
}

/// The answer comes before the end of the detach, which is an event.
fn detach(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    let machine = require_machine(view)?;
    let disk = parameters.disk(view)?;
    machine.hotplug.detach(&disk).map_err(|error| hotplug_problem(&error))?;
    disk_response(202, &disk)
}

fn hotplug_problem(error: &HotplugError) -> Problem {
    use HotplugError::{
        AddressTaken, Attaching, Committing, Detaching, Disk, IdTaken, ImageTaken, Limit,
        NoController, NotScsi, Queues, Thread,
    };
    if let Disk(DiskError::Open(_, OpenError::Foreign { path, format, remedy })) = error {
        let detail = format!("{}: not a raw image but {format}", path.display());
        return Problem::new(400, detail, remedy.as_str());
    }
    let (status, remedy) = match error {
        Detaching(_) => (409, "wait for the event `disk_detached`".to_owned()),
        Committing(_) => (409, "wait for the end of the commit, or stop it".to_owned()),
        Attaching(_) => (409, "wait until it is attached".to_owned()),
        IdTaken(_) => (409, "give it another `id`".to_owned()),
        ImageTaken { .. } => (409, "detach it first, or set `readonly = true` on both".to_owned()),
        NoController { existing, .. } => (409, controllers_remedy(existing)),
        Queues { available, .. } => (409, format!("write at most {available}, or remove `queues`")),
        Limit(exceeded) => (409, exceeded.remedy()),
        AddressTaken(_) => (409, "write another `lun`, or remove the key".to_owned()),
        Disk(DiskError::Open(_, OpenError::InUse { .. })) => {
            (409, "end its user, or set `readonly = true` on both sides".to_owned())
        }
        Disk(DiskError::Open(_, OpenError::WrongLink { .. })) => {
            (400, "name the device by another path".to_owned())
        }
        Disk(DiskError::Open(_, OpenError::Unsuitable { .. })) => {
            (400, "see `bulkhead disk inspect`".to_owned())
        }
        Disk(DiskError::Record(..)) => (409, "name a new file with `record`".to_owned()),
        Disk(_) | Thread(_) => (500, "see the log of the machine".to_owned()),
        NotScsi(_) => {
            let remedy =
                "only a disk with `bus = \"virtio-scsi\"` can be detached from a running machine";
            (409, remedy.to_owned())
        }
    };
    Problem::new(status, error.to_string(), remedy)
}

fn controllers_remedy(existing: &[u8]) -> String {
    match existing {
        [] => "add `[[scsi]]` to the machine's configuration, and restart it".to_owned(),
        existing => {
            let existing: Vec<_> = existing.iter().map(ToString::to_string).collect();
            format!(
                "it has: {}; further ones need `[[scsi]]` in the machine's configuration",
                existing.join(", ")
            )
        }
    }
}

fn metrics_page(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    let body = metrics::render(view);
    Ok(Response { status: 200, content_type: metrics::CONTENT_TYPE, allow: None, body })
}

/// Blocks until the host has flushed the disks.
fn snapshot(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    super::snapshot::make(view, parameters.body)
}

/// Blocks until the log is closed.
fn stop_record(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    let disk = parameters.disk(view)?;
    super::record::stop(view, &disk)?;
    disk_response(200, &disk)
}

/// Blocks until the logs of the disks have the mark.
fn mark(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    super::record::make_mark(view, parameters.body)
}

fn commits(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    Ok(super::commit::show(view))
}

/// Blocks until the host has opened the files.
fn commit(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    super::commit::start(view, parameters.body)
}

fn stop_commit(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    Ok(super::commit::stop(view))
}

/// With `drain`, blocks until no request is in flight. Requests held for ENOSPC stay in flight.
fn pause(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    let pause = optional_body::<Pause>(parameters, "a pause", "{\"drain\": true}")?;
    let response = execute(view, MachineCommand::Pause, 200)?;
    if !pause.drain {
        return Ok(response);
    }
    let start = Instant::now();
    while view.in_flight() > 0 {
        if start.elapsed() > DRAIN_TIMEOUT {
            let detail = format!(
                "{} requests are in flight after {} s; the machine is paused",
                view.in_flight(),
                DRAIN_TIMEOUT.as_secs()
            );
            return Err(Problem::new(503, detail, "see the status, then try again or resume"));
        }
        thread::sleep(DRAIN_INTERVAL);
    }
    Ok(outcome(view, 200))
}

fn resume(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    command(view, parameters, MachineCommand::Resume, 200)
}

/// The answer does not depend on the guest, which may ignore the button.
fn power_button(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    command(view, parameters, MachineCommand::PressPowerButton, 202)
}

fn command(
    view: &View,
    parameters: &Parameters<'_>,
    command: MachineCommand,
    success: u16,
) -> Result<Response, Problem> {
    parameters.require_empty_body()?;
    execute(view, command, success)
}

fn execute(view: &View, command: MachineCommand, success: u16) -> Result<Response, Problem> {
    require_machine(view)?.commands.execute(command).map_err(|error| {
        let detail = error.to_string();
        match error {
            CommandError::ShuttingDown => Problem::new(409, detail, "restart it"),
            CommandError::Host(_) => Problem::new(500, detail, "see the log of the machine"),
            CommandError::TimedOut => Problem::new(503, detail, "get the status, then try again"),
        }
    })?;
    Ok(outcome(view, success))
}

fn outcome(view: &View, status: u16) -> Response {
    Response::json(status, &Outcome { state: view.state(), in_flight: view.in_flight() })
}

/// The body of a request, or its default without one.
fn optional_body<T: Default + DeserializeOwned>(
    parameters: &Parameters<'_>,
    purpose: &str,
    example: &str,
) -> Result<T, Problem> {
    if parameters.body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(parameters.body).map_err(|error| {
        let remedy = format!("send {example}, or no body");
        Problem::new(400, format!("the body is not {purpose}: {error}"), remedy)
    })
}

fn require_machine(view: &View) -> Result<&MachineView, Problem> {
    view.machine.as_ref().ok_or_else(|| {
        let remedy = "send it to the monitor that runs the guest";
        Problem::new(409, "this process serves a disk and runs no guest", remedy)
    })
}

fn resize(view: &View, parameters: &Parameters<'_>) -> Result<Response, Problem> {
    let disk = parameters.disk(view)?;
    let example = "{\"size_bytes\": N} with N in bytes";
    let resize = optional_body::<Resize>(parameters, "a resize", example)?;
    let before = disk.control.geometry().capacity;
    let size = disk.control.resize(resize.size_bytes).map_err(|error| resize_problem(&error))?;
    tracing::info!(disk = parameters.id, before, size, "resized through the control socket");
    disk_response(200, &disk)
}

fn resize_problem(error: &ResizeError) -> Problem {
    let (status, remedy) = match error {
        ResizeError::Shrink { .. } => {
            (409, "choose a larger size; to shrink, copy to a smaller disk")
        }
        ResizeError::Unaligned { .. } => (400, "choose a multiple of the block size"),
        ResizeError::ReadOnly => (409, "enlarge its file on the host, then resize without a size"),
        ResizeError::NotAFile => (
            409,
            "enlarge the device (`lvextend`, volsize of a ZFS volume), then resize without a size",
        ),
        ResizeError::Host { .. } => (500, "check the file system"),
    };
    Problem::new(status, error.to_string(), remedy)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn found(path: &str) -> Vec<(&'static str, &str)> {
        let matching = |route: &Route| Some((route.path, match_path(route, path)?));
        ROUTES.iter().filter_map(matching).collect()
    }

    #[test]
    fn a_path_has_one_route() {
        assert_eq!(found("/v1/status"), [("/v1/status", "")]);
        assert_eq!(found("/v1/disks/a.b"), [("/v1/disks/{id}", "a.b"); 3], "a method each");
        assert_eq!(found("/v1/disks/a/resize"), [("/v1/disks/{id}/resize", "a")]);
        for nowhere in
            ["", "/", "/v1", "/v1/status/", "/v1/disks/", "/v1/disks//resize", "/v1/disks/a/b"]
        {
            assert_eq!(found(nowhere), [], "{nowhere}");
        }
    }

    #[test]
    fn the_description_has_the_same_routes() {
        let text = include_str!("../../../../resources/openapi.json");
        let description: Value = serde_json::from_str(text).unwrap();
        let described: BTreeSet<_> = description["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().keys();
                let methods = methods.filter(|key| *key != "parameters");
                methods.map(move |method| (method.to_uppercase(), path.clone()))
            })
            .collect();
        let routed: BTreeSet<_> =
            ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
        assert_eq!(described, routed);
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
