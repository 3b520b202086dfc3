//! Answers of the control socket, checked against `resources/openapi.json`.

use serde_json::Value;

use super::{DISK_BYTES, Rig};

/// The OpenAPI description.
fn description() -> Value {
    serde_json::from_str(include_str!("../../../../resources/openapi.json")).unwrap()
}

/// Checks `value` against a schema: every key is described, and every required key is present.
pub(super) fn check(value: &Value, schema: &Value, at: &str) {
    let description = description();
    let schema = match schema.get("$ref") {
        Some(name) => {
            &description.pointer(name.as_str().unwrap().trim_start_matches('#')).unwrap().clone()
        }
        None => schema,
    };
    if let Some(choices) = schema.get("anyOf") {
        // A schema, or null.
        let [schema, null] = choices.as_array().unwrap().as_slice() else { panic!("{at}") };
        assert_eq!(null["type"], "null", "{at}");
        if !value.is_null() {
            check(value, schema, at);
        }
        return;
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(kinds.iter().any(|wanted| wanted == kind), "{at}: {kind} is not {kinds:?}");
    if let Some(words) = schema.get("enum") {
        assert!(words.as_array().unwrap().contains(value), "{at}: {value} is not of {words}");
    }
    for item in value.as_array().into_iter().flatten() {
        check(item, &schema["items"], at);
    }
    let Some(fields) = value.as_object() else { return };
    for (key, field) in fields {
        let described = schema["properties"].get(key);
        check(
            field,
            described.unwrap_or_else(|| panic!("{at}.{key} is not described")),
            &format!("{at}.{key}"),
        );
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(fields.contains_key(required.as_str().unwrap()), "{at} has no {required}");
    }
}

pub(super) fn schema(name: &str) -> Value {
    description()["components"]["schemas"][name].clone()
}

#[test]
fn the_status_matches_the_description() {
    let rig = Rig::with_disks();
    let status = rig.get("/v1/status").json();
    check(&status, &schema("Status"), "status");
    assert_eq!(status["state"], "running");
    assert_eq!(status["vcpus"], 2);
    assert_eq!(status["memory_bytes"], 32 << 20);
    assert_eq!(status["pid"], rig.child.id());
    let [root, fast] = status["disks"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&root["id"], &root["size_bytes"]), (&"root".into(), &DISK_BYTES.into()));
    assert_eq!(root["path"], rig.machine.path("root.img").to_str().unwrap());
    assert_eq!(
        // Without a driver in the guest, no engine is chosen yet.
        (&root["cache"], &root["engine"]["name"]),
        (&"writeback".into(), &"auto".into())
    );
    assert_eq!(root["queues"].as_array().unwrap().len(), 2);
    assert_eq!(root["warnings"], Value::Array(vec![]));
    let warning = fast["warnings"][0].as_str().unwrap();
    assert!(warning.contains("unsafe") && warning.contains("flushes are ignored"), "{warning}");

    let disk = rig.get("/v1/disks/fast").json();
    check(&disk, &schema("Disk"), "disk");
    assert_eq!(&disk, fast);
}

#[test]
fn problems_match_the_description() {
    let rig = Rig::with_disks();
    let cases = [
        ("GET", "/v1/nothing", "", 404, "/v1/status"),
        ("GET", "/v1/disks/other", "", 404, "root, fast"),
        ("POST", "/v1/disks/other/resize", "", 404, "root, fast"),
        ("GET", "/v1/disks/root/more", "", 404, "/v1/status"),
        ("POST", "/v1/status", "", 405, "GET"),
        ("GET", "/v1/pause", "", 405, "POST"),
        ("POST", "/v1/disks/root", "", 405, "use GET, PUT, DELETE"),
        ("DELETE", "/v1/disks/root", "", 409, "virtio-scsi"),
        ("POST", "/v1/pause", "{\"wait\": 1}", 400, "drain"),
        ("POST", "/v1/resume", "{}", 400, "none"),
        ("GET", "/v1/status", "{}", 400, "none"),
        ("POST", "/v1/disks/root/resize", "{", 400, "size_bytes"),
        ("POST", "/v1/disks/root/resize", "{\"size\": 1}", 400, "size_bytes"),
        ("POST", "/v1/disks/root/resize", "{\"size_bytes\": -1}", 400, "size_bytes"),
        (
            "POST",
            "/v1/disks/root/resize",
            "{\"size_bytes\": 4194305}",
            400,
            "a multiple of the block size",
        ),
        ("POST", "/v1/disks/root/resize", "{\"size_bytes\": 512}", 409, "choose a larger size"),
    ];
    for (method, path, body, status, remedy) in cases {
        let answer = rig.request(method, path, body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert!(answer.head.contains("application/problem+json"), "{answer:?}");
        let problem = answer.json();
        check(&problem, &schema("Problem"), "problem");
        assert_eq!(problem["status"], status);
        assert!(problem["remedy"].as_str().unwrap().contains(remedy), "{path}: {problem}");
        assert_eq!(answer.head.contains("\r\nAllow: "), status == 405, "{answer:?}");
    }
    assert!(rig.request("PUT", "/v1/pause", "").head.contains("\r\nAllow: POST\r\n"));
    assert_eq!(rig.state(), "running");
}
