//! `[control]`.

use std::os::unix::net::UnixListener;

use super::*;

#[test]
fn a_control_socket_is_read() {
    let text = format!("{BASE}[control]\nsocket='control.sock'\n");
    let (source, _) = parse::parse_machine(&text, Path::new("/vm"));
    let machine = source.map(build::machine).unwrap().unwrap();
    assert_eq!(machine.control.as_deref(), Some(Path::new("/vm/control.sock")));
}

#[test]
fn invalid_control_tables() {
    assert_data_eq!(
        [
            report_with_base("[control]"),
            report_with_base("[control]\nsocket=1\npath='a'"),
            report_with_base("[control]\nsocket='a'\n[console]\nsocket='a'"),
        ]
        .concat(),
        str![[r#"
`[control]` has no `socket`
  [control]  <- needs `socket`
  add `socket = "control.sock"`
`socket` must be a string
  1  <- this is an integer
  write `socket = "control.sock"`
unknown key `path`
  path  <- not a key of [control]
  the keys of [control] are: socket
`[console]` and `[control]` use the same socket
  'a'  <- second use
  'a'  <- first use
  give each its own path

"#]]
    );
}

#[test]
fn invalid_control_socket_paths() {
    let host = HostFixture::new();
    let report = |name: &str| host.report_with_base(&format!("[control]\nsocket='{name}'\n"));
    assert_eq!(report("new.sock"), "");
    drop(UnixListener::bind(host.folder.path().join("old.sock")).unwrap());
    assert_eq!(report("old.sock"), "", "an abandoned socket is replaced");
    let _live = UnixListener::bind(host.folder.path().join("live.sock")).unwrap();
    assert_data_eq!(
        ["live.sock", "root.img", "no/c.sock"].map(report).concat(),
        str![[r#"
the control socket `/vm/live.sock` is in use
  'live.sock'  <- another machine listens on it
  give each machine its own socket, or end the other one
cannot create the control socket `/vm/root.img`
  'root.img'  <- exists and is not a socket
  choose another path
cannot create the control socket `/vm/no/c.sock`
  'no/c.sock'  <- the directory `/vm/no` does not exist
  a relative path starts at this file's directory; or create it with `mkdir -p /vm/no`

"#]]
    );
}
