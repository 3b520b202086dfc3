//! What can be asked of the control socket, and what answers. Control socket thread.

use std::sync::Arc;

use block::{OpenError, ResizeError};

use super::collect::{MachineView, View};
use super::http::{Problem, Request, Response};
use super::metrics;
use super::model::{Outcome, Resize};
use crate::config::attached::{AttachRequest, AttachableDisk};
use crate::control::commands::{Command, Refusal};
use crate::disks::{DiskError, HotplugError, ManagedDisk};

/// One entry of the interface: `resources/openapi.json` has the same ones, which a test sees to.
struct Route {
    method: &'static str,
    /// `{id}` stands for a disk.
    path: &'static str,
    answer: fn(&View, &Call<'_>) -> Result<Response, Problem>,
}

/// What the path and the body hold for a route.
struct Call<'r> {
    id: &'r str,
    body: &'r [u8],
}

const ROUTES: [Route; 10] = [
    Route { method: "GET", path: "/v1/status", answer: status },
    Route { method: "GET", path: "/v1/disks/{id}", answer: disk },
    Route { method: "PUT", path: "/v1/disks/{id}", answer: attach },
    Route { method: "DELETE", path: "/v1/disks/{id}", answer: detach },
    Route { method: "POST", path: "/v1/disks/{id}/resize", answer: resize },
    Route { method: "POST", path: "/v1/pause", answer: pause },
    Route { method: "POST", path: "/v1/resume", answer: resume },
    Route { method: "POST", path: "/v1/power-button", answer: power_button },
    Route { method: "GET", path: "/v1/events", answer: events },
    Route { method: "GET", path: "/metrics", answer: metrics_page },
];

/// Does what `request` asks, and says how it went.
pub(super) fn answer(view: &View, request: &Request) -> Response {
    let mut found = ROUTES.iter().filter_map(|route| Some((route, matches(route, &request.path)?)));
    let methods = found.clone().map(|(route, _)| route.method).collect::<Vec<_>>().join(", ");
    if methods.is_empty() {
        let detail = format!("there is no {:?}", request.path);
        let mut paths = ROUTES.map(|route| route.path).to_vec();
        paths.dedup();
        return Problem::new(404, detail, format!("ask for one of {}", paths.join(", "))).into();
    }
    let Some((route, id)) = found.find(|(route, _)| route.method == request.method) else {
        let detail = format!("{} takes no {}", request.path, request.method);
        let problem = Problem::new(405, detail, format!("send a {methods}"));
        return Response { allow: Some(methods), ..problem.into() };
    };
    (route.answer)(view, &Call { id, body: &request.body }).unwrap_or_else(Response::from)
}

/// The disk that `path` names, or nothing where the route has none; `None` if it is another path.
fn matches<'p>(route: &Route, path: &'p str) -> Option<&'p str> {
    let Some((before, after)) = route.path.split_once("{id}") else {
        return (route.path == path).then_some("");
    };
    let id = path.strip_prefix(before)?.strip_suffix(after)?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

impl Call<'_> {
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

    fn without_body(&self) -> Result<(), Problem> {
        if self.body.is_empty() {
            return Ok(());
        }
        Err(Problem::new(400, "this takes no body", "send none"))
    }
}

fn status(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    call.without_body()?;
    Ok(Response::json(200, &view.status()))
}

fn events(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    call.without_body()?;
    Ok(Response::json(200, &view.events()))
}

fn disk(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    call.without_body()?;
    Ok(Response::json(200, &call.disk(view)?.status()))
}

/// Waits for the host to open the image, as a resize does for its file system.
fn attach(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    let machine = of_machine(view)?;
    let keys = serde_json::from_slice(call.body).map_err(|error| {
        let remedy = "send the keys of a disk but for its id, such as {\"path\": \"/images/data.img\", \"bus\": \"virtio-scsi\"}";
        Problem::new(400, format!("the body is no disk: {error}"), remedy)
    })?;
    let request = AttachRequest { id: call.id.to_owned(), keys };
    let disk = AttachableDisk::new(request).map_err(|report| {
        let (detail, remedy) = report.summary();
        Problem::new(400, detail, remedy)
    })?;
    let disk = machine.hotplug.attach(disk).map_err(|refusal| refused(&refusal))?;
    Ok(Response::json(201, &disk.status()))
}

/// The disk goes when what is in flight has ended, which is an event.
fn detach(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    call.without_body()?;
    let machine = of_machine(view)?;
    let disk = call.disk(view)?;
    machine.hotplug.detach(&disk).map_err(|refusal| refused(&refusal))?;
    Ok(Response::json(202, &disk.status()))
}

fn refused(refusal: &HotplugError) -> Problem {
    use HotplugError::{
        AddressTaken, Detaching, Disk, IdTaken, ImageTaken, NoController, NotScsi, Queues, Thread,
    };
    let (status, remedy) = match refusal {
        Detaching(_) => (409, "wait until the event `disk_detached` tells of its end".to_owned()),
        IdTaken(_) => (409, "give it another `id`".to_owned()),
        ImageTaken { .. } => {
            (409, "detach that one first, or set `readonly = true` on both".to_owned())
        }
        NoController { existing, .. } => (409, where_to(existing)),
        Queues { available, .. } => {
            (409, format!("write at most {available}, or leave `queues` out"))
        }
        AddressTaken(_) => (409, "write another `lun`, or leave it out".to_owned()),
        Disk(DiskError::Open(_, OpenError::InUse { .. })) => {
            (409, "end what uses it, or set `readonly = true` on both sides".to_owned())
        }
        Disk(DiskError::Open(_, OpenError::Unsuitable { .. })) => {
            (400, "see `bulkhead disk inspect`".to_owned())
        }
        Disk(_) | Thread(_) => (500, "see the log of the machine".to_owned()),
        NotScsi(_) => {
            let remedy =
                "only a disk with `bus = \"virtio-scsi\"` comes and goes while the machine runs";
            (409, remedy.to_owned())
        }
    };
    Problem::new(status, refusal.to_string(), remedy)
}

fn where_to(there_are: &[u8]) -> String {
    match there_are {
        [] => "add `[[scsi]]` to the machine's configuration, and start it again".to_owned(),
        some => {
            let some: Vec<_> = some.iter().map(ToString::to_string).collect();
            format!(
                "it has: {}; others are declared with `[[scsi]]` before it starts",
                some.join(", ")
            )
        }
    }
}

fn metrics_page(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    call.without_body()?;
    let body = metrics::render(view);
    Ok(Response { status: 200, content_type: metrics::CONTENT_TYPE, allow: None, body })
}

fn pause(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    command(view, call, Command::Pause, 200)
}

fn resume(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    command(view, call, Command::Resume, 200)
}

/// What the guest makes of the button is its own affair.
fn power_button(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    command(view, call, Command::PressPowerButton, 202)
}

fn command(view: &View, call: &Call<'_>, command: Command, done: u16) -> Result<Response, Problem> {
    call.without_body()?;
    of_machine(view)?.commander.give(command).map_err(|refusal| {
        let detail = refusal.to_string();
        match refusal {
            Refusal::Ending => Problem::new(409, detail, "start it again"),
            Refusal::Host(_) => Problem::new(500, detail, "see the log of the machine"),
            Refusal::Silent => Problem::new(503, detail, "ask for the status, then try again"),
        }
    })?;
    Ok(Response::json(done, &Outcome { state: view.state() }))
}

fn of_machine(view: &View) -> Result<&MachineView, Problem> {
    view.machine.as_ref().ok_or_else(|| {
        let remedy = "ask the monitor that runs the guest";
        Problem::new(409, "this serves a disk and runs no guest", remedy)
    })
}

fn resize(view: &View, call: &Call<'_>) -> Result<Response, Problem> {
    let disk = call.disk(view)?;
    let asked = if call.body.is_empty() {
        Resize::default()
    } else {
        serde_json::from_slice(call.body).map_err(|error| {
            let remedy = "send {\"size_bytes\": N} with N in bytes, or no body";
            Problem::new(400, format!("the body is no resize: {error}"), remedy)
        })?
    };
    let before = disk.control.geometry().capacity;
    let size = disk.control.resize(asked.size_bytes).map_err(|error| resize_problem(&error))?;
    tracing::info!(disk = call.id, before, size, "resized through the control socket");
    Ok(Response::json(200, &disk.status()))
}

fn resize_problem(error: &ResizeError) -> Problem {
    let (status, remedy) = match error {
        ResizeError::Shrink { .. } => (409, "ask for more; to shrink, copy to a smaller disk"),
        ResizeError::Unaligned { .. } => (400, "ask for whole blocks"),
        ResizeError::ReadOnly => {
            (409, "make its file larger from outside, then resize without a size")
        }
        ResizeError::NotAFile => (
            409,
            "make the device larger (`zfs set volsize`, `lvextend`), then resize without a size",
        ),
        ResizeError::Host { .. } => (500, "see what the file system says"),
    };
    Problem::new(status, error.to_string(), remedy)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn found(path: &str) -> Vec<(&'static str, &str)> {
        let matching = |route: &Route| Some((route.path, matches(route, path)?));
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
    fn the_description_lists_exactly_the_routes() {
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
