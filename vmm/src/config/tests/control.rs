//! What `[control]` may say.

use std::os::unix::net::UnixListener;

use super::*;

#[test]
fn a_control_socket_is_read() {
    let text = format!("{BASE}[control]\nsocket='control.sock'\n");
    let machine = parse::parse(&text, Path::new("/vm")).0.unwrap().build().unwrap();
    assert_eq!(machine.control.as_deref(), Some(Path::new("/vm/control.sock")));
}

#[test]
fn what_is_wrong_with_control_is_said() {
    assert_data_eq!(
        [
            said_after_base("[control]"),
            said_after_base("[control]\nsocket=1\npath='a'"),
            said_after_base("[control]\nsocket='a'\n[console]\nsocket='a'"),
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
console and control have the same socket
  'a'  <- the second
  'a'  <- the first
  give each a path of its own

"#]]
    );
}

#[test]
fn control_places() {
    let lab = Lab::new();
    let said = |name: &str| lab.said_after_base(&format!("[control]\nsocket='{name}'\n"));
    assert_eq!(said("new.sock"), "");
    drop(UnixListener::bind(lab.folder.path().join("old.sock")).unwrap());
    assert_eq!(said("old.sock"), "", "nobody listens there any more");
    let _live = UnixListener::bind(lab.folder.path().join("live.sock")).unwrap();
    assert_data_eq!(
        ["live.sock", "root.img", "no/c.sock"].map(said).concat(),
        str![[r#"
the control socket `/vm/live.sock` is in use
  'live.sock'  <- another machine listens here
  give each machine its own socket, or end the other one
cannot create the control socket `/vm/root.img`
  'root.img'  <- something else has this name
  choose another path, or remove what is there
cannot create the control socket `/vm/no/c.sock`
  'no/c.sock'  <- there is no folder `/vm/no`
  a relative path starts at the folder of this file; or create it with `mkdir -p /vm/no`

"#]]
    );
}
