//! # Running a pool on many machines
//!
//! A run has three parts: a NATS server with JetStream, one *parent* (your program, started as usual), and any number
//! of *nodes* (the same program, started with `POOL_NODE` in its environment). You can start them in any order.
//!
//! # On a laptop, in three terminals
//!
//! ```text
//! $ nats-server -js -a 127.0.0.1
//! $ POOL_NODE=nats://127.0.0.1:4222/nightly ./app
//! $ ./app
//! ```
//!
//! where the program contains
//!
//! ```no_run
//! # use pool_core::{Error, Pool};
//! # fn main() -> Result<(), Error> {
//! let backend = pool_nats::connect("nats://127.0.0.1:4222")?.run("nightly");
//! let pool = Pool::builder().backend(backend).build()?;
//! # Ok(())
//! # }
//! ```
//!
//! All processes must run the same build of the program. A node whose tasks differ is refused, and both sides say which
//! tasks differ.
//!
//! # By ssh
//!
//! Copy the program to each host and start it. Each node waits for the run, and ends with it.
//!
//! ```text
//! for host in n1 n2 n3; do
//!     scp -q app $host:
//!     ssh $host 'POOL_NODE=nats://head:4222/nightly setsid ./app </dev/null >node.log 2>&1 &'
//! done
//! ./app
//! ```
//!
//! # With Slurm
//!
//! Start one node on each host of the job, with all of its CPUs; the parent is the last step of the script.
//!
//! ```text
//! #!/bin/bash
//! #SBATCH --nodes=8 --exclusive
//! nats-server -js -sd "$TMPDIR/nats" &
//! export URL=nats://$(hostname):4222
//! POOL_NODE=$URL/job-$SLURM_JOB_ID srun --ntasks-per-node=1 ./app &
//! ./app "$URL" "job-$SLURM_JOB_ID"
//! ```
//!
//! # On Kubernetes
//!
//! Run the nodes as a Job. They may be evicted and restarted at any time. `terminationGracePeriodSeconds` must be
//! longer than the pool's `grace`.
//!
//! ```yaml
//! apiVersion: batch/v1
//! kind: Job
//! metadata: { name: nodes }
//! spec:
//!   parallelism: 20
//!   template:
//!     spec:
//!       restartPolicy: OnFailure
//!       terminationGracePeriodSeconds: 30
//!       containers:
//!         - name: node
//!           image: registry.example/app
//!           env:
//!             - { name: POOL_NODE, value: "nats://user:password@nats:4222/nightly" }
//!             - { name: POOL_NODE_PROCESSES, value: "4" }
//!           resources: { limits: { cpu: "4", memory: 8Gi } }
//! ```
//!
//! # With systemd
//!
//! This node always runs, and waits for the next run of this name:
//!
//! ```text
//! [Service]
//! Environment=POOL_NODE=nats://head:4222/nightly
//! ExecStart=/usr/local/bin/app
//! Restart=always
//! ```
//!
//! # Permissions
//!
//! Anyone who may publish to the subjects of a run can run any task of the program. This server configuration gives a
//! parent and its nodes the permissions that they need and no others, and rejects clients without a certificate. (The
//! tests of this crate use it.)
//!
//! ```text
#![doc = include_str!("server.conf")]
//! ```
//!
//! A node takes its credentials from the environment variables of the `nats` command-line tool:
//!
//! ```text
//! NATS_USER=node NATS_PASSWORD='change me too' \
//!     NATS_CA=ca.pem NATS_CERT=client.pem NATS_KEY=client-key.pem POOL_NODE=tls://head:4222/nightly ./app
//! ```
//!
//! So does a parent that has not been given [`options`](crate::Nats::options). If the server denies the parent
//! something, the pool is [`Error::Broken`](pool_core::Error::Broken); if it denies a node something, the node ends.
//! The error, or the last line that the node logs, names the subject.
//!
//! # When the server is short of space
//!
//! Loads are kept in the server's memory (or on its disk if it may not use memory), and long data in an object store on
//! its disk. [`max_bytes`](crate::Nats::max_bytes) limits how much space inputs take there. If the disk is full, the
//! pool waits for up to [`server_timeout`](crate::Nats::server_timeout), as it does when the server is unreachable.
//!
//! # Performance
//!
//! Measured with the server, the parent and two nodes on one machine with two CPUs, which they all shared:
//!
//! | | |
//! |---|---|
//! | `apply` of an empty task | 0.33 to 0.46 ms |
//! | `map` of empty tasks | 2.6 million per second |
//! | the same with `chunksize(1)` | 2.6 million per second |
//! | share of CPU time spent in tasks, for tasks of 1 ms and of 10 ms | 88 to 92 %, 97 to 99 % |
//! | an argument of 64 MiB | 130 MiB/s |
//!
//! (To measure it, alongside Ray and Dask: `cargo bench -p benches -- --only machines`.)
//!
//! Inputs travel in loads of about 5 ms of work. Data longer than 256 KiB goes through the object store of the run.
//! Arguments bound by [`partial`](pool_core::Call::partial), and each [`Shared`](pool_core::Shared), go there once,
//! from there to each node once, and are in memory once on each node.
//!
//! # Monitoring
//!
//! - Each node logs a line to standard error when it waits, joins and ends, with the reason. The parent reports through
//!   `tracing`: `a node has joined`, `a node has left`, `a node was refused`.
//! - In the program, [`Pool::stats`](pool_core::Pool::stats) shows the workers of all nodes, and what they run. Logs, events
//!   and timelines contain those of nodes: see [above](crate#output-logs-events-and-statistics).
//! - `nats stream info pool_nightly` shows how many loads are published but not finished (no more than three per
//!   worker), and which consumers exist. `nats sub 'pool.nightly.>'` shows the messages.
//!   `nats object info pool_nightly` shows what is stored.
//! - After a run, neither the stream nor the object store exists. If they are left behind, because the parent and all
//!   its nodes were killed together, the parent's host lost power, or the server was unreachable at the end, the next
//!   run of the same name deletes them.
