//! Programs that people really run, unchanged from the distribution: what a container may not do must not be
//! anything that they need. Needs the packages nginx-light (or another nginx), nodejs, python3-minimal, util-linux.

use std::fs;

use codius_guest_protocol::{ContainerConfig, ContainerExit};

use crate::vm::{Image, Options, Vm, pod, shell};

const NGINX: &str = "user app; daemon off; pid /run/nginx.pid; error_log stderr; worker_processes 1;\n\
    events {}\n\
    http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p;\n\
      fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
      server { listen 80; root /www; } }\n";

/// A child, a thread, files, a timer, a page; the whole runtime comes up for it.
const NODE: &str = "
    const { execFileSync } = require('child_process');
    const { Worker } = require('worker_threads');
    const fs = require('fs');
    fs.writeFileSync('/tmp/node', 'written');
    const child = execFileSync('/bin/echo', ['child']).toString().trim();
    const worker = new Worker(\"require('worker_threads').parentPort.postMessage('thread')\", { eval: true });
    worker.on('message', (thread) => {
      const said = [child, thread, fs.readFileSync('/tmp/node'), process.getuid()].join(' ');
      require('http').createServer((_, answer) => answer.end(said)).listen(3000);
    });
";

/// As servers do: a low port, files for another user, then become him, with processes that share semaphores.
const PYTHON: &str = "
import multiprocessing, os, socket, subprocess, tempfile, threading
low = socket.create_server(('0.0.0.0', 81))
os.makedirs('/var/lib/app', exist_ok=True)
os.chown('/var/lib/app', 1000, 1001)
os.setgroups([1001]); os.setgid(1001); os.setuid(1000)
open('/var/lib/app/state', 'w').write('state')
lock = multiprocessing.Semaphore(1)
if (fork := os.fork()) == 0:
    with lock:
        open('/var/lib/app/fork', 'w').write('fork')
    os._exit(0)
os.waitpid(fork, 0)
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
child = subprocess.run(['/bin/echo', 'child'], capture_output=True, text=True).stdout.strip()
print(child, os.getuid(), sorted(os.listdir('/var/lib/app')), flush=True)
";

#[test]
fn ordinary_servers_run_as_they_do_elsewhere() {
    let image = Image::busybox();
    // As /usr/bin/python3.11, whose library is /usr/lib/python3.11.
    let python = fs::canonicalize("/usr/bin/python3").expect("install the package python3");
    let python = python.to_str().unwrap();
    let library = python.replace("/bin/", "/lib/");
    for program in [
        "/usr/sbin/nginx",
        "/usr/bin/node",
        python,
        "/usr/bin/setpriv",
    ] {
        image.program(program);
    }
    for directory in [
        "asyncio",
        "collections",
        "concurrent",
        "ctypes",
        "encodings",
        "importlib",
        "json",
        "lib-dynload",
        "multiprocessing",
        "re",
    ] {
        image.copy(&format!("{library}/{directory}"));
    }
    image.files_of(&library);
    for directory in ["run", "var/log/nginx", "var/lib/nginx"] {
        image.directory(directory);
    }
    image.mode("tmp", 0o1777);
    image.file("etc/nginx.conf", 0o644, NGINX);
    let run = |id: &str, arguments: &[&str]| ContainerConfig {
        args: arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect(),
        ..shell(id, "")
    };
    // In two machines: what they hold of these files would not fit into the memory of one.
    let node = ContainerConfig {
        user: "app".into(),
        ..run("node", &["/usr/bin/node", "-e", NODE])
    };
    let setpriv = [
        "/usr/bin/setpriv",
        "--reuid=1000",
        "--regid=1001",
        "--init-groups",
        "--inh-caps=-all",
        "id",
        "-u",
    ];
    assert_said(
        &image,
        vec![
            run("python", &[python, "-c", PYTHON]),
            run("setpriv", &setpriv),
            shell(
                "su",
                "su app -c 'id -u'; chown app /tmp; mkdir /jail; chroot / id -g",
            ),
        ],
        &[
            (0, "child 1000 ['fork', 'state']\n"),
            (1, "1000\n"),
            (2, "1000\n0\n"),
        ],
    );
    let visitor = "until wget -qO- http://localhost/; do sleep 0.3; done 2>/dev/null; \
         until wget -qO- http://localhost:3000/; do sleep 0.3; done 2>/dev/null";
    assert_said(
        &image,
        vec![
            run("nginx", &["/usr/sbin/nginx", "-c", "/etc/nginx.conf"]),
            node,
            shell("visitor", visitor),
        ],
        &[(2, "a page\nchild thread written 1000")],
    );
}

/// In a machine of their own, these containers end well and have said this.
fn assert_said(image: &Image, containers: Vec<ContainerConfig>, expected: &[(u16, &str)]) {
    let mut vm = Vm::boot(&Options {
        images: &[image],
        ..Options::default()
    });
    vm.configure(pod(containers));
    for &(container, expected) in expected {
        let exit = vm.wait_for_exit(container);
        let (said, complaint) = (vm.stdout(container), vm.stderr(container));
        assert_eq!(
            (exit, said.as_str()),
            (ContainerExit::Code(0), expected),
            "{complaint}"
        );
    }
}
