//! What can be asked of the control socket, and what answers. Control socket thread.

use block::ResizeError;

use super::collect::{DiskView, View};
use super::http::{Problem, Request, Response};
use super::metrics;
use super::model::{Outcome, Resize};
use crate::commands::{Command, Refusal};

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

const ROUTES: [Route; 8] = [
    Route { method: "GET", path: "/v1/status", answer: status },
    Route { method: "GET", path: "/v1/disks/{id}", answer: disk },
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
    let Some((first, id)) = found.clone().next() else {
        let detail = format!("there is no {:?}", request.path);
        let paths = ROUTES.map(|route| route.path).join(", ");
        return Problem::new(404, detail, format!("ask for one of {paths}")).into();
    };
    let Some((route, _)) = found.find(|(route, _)| route.method == request.method) else {
        let detail = format!("{} takes no {}", request.path, request.method);
        let problem = Problem::new(405, detail, format!("send a {}", first.method));
        return Response { allow: Some(first.method), ..problem.into() };
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
    fn disk<'v>(&self, view: &'v View) -> Result<&'v DiskView, Problem> {
        view.disk(self.id).ok_or_else(|| {
            let ids: Vec<_> = view.disks.iter().map(|disk| disk.config.id.as_str()).collect();
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
    let Some(machine) = &view.machine else {
        let remedy = "ask the monitor that runs the guest";
        return Err(Problem::new(409, "this serves a disk and runs no guest", remedy));
    };
    machine.commander.give(command).map_err(|refusal| {
        let detail = refusal.to_string();
        match refusal {
            Refusal::Ending => Problem::new(409, detail, "start it again"),
            Refusal::Host(_) => Problem::new(500, detail, "see the log of the machine"),
            Refusal::Silent => Problem::new(503, detail, "ask for the status, then try again"),
        }
    })?;
    Ok(Response::json(done, &Outcome { state: view.state() }))
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
        assert_eq!(found("/v1/disks/a.b"), [("/v1/disks/{id}", "a.b")]);
        assert_eq!(found("/v1/disks/a/resize"), [("/v1/disks/{id}/resize", "a")]);
        for nowhere in
            ["", "/", "/v1", "/v1/status/", "/v1/disks/", "/v1/disks//resize", "/v1/disks/a/b"]
        {
            assert_eq!(found(nowhere), [], "{nowhere}");
        }
    }

    #[test]
    fn the_description_lists_exactly_the_routes() {
        let text = include_str!("../../../resources/openapi.json");
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
