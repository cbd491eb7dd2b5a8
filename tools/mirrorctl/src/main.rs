//! `mirrorctl`: the one command-line tool. Each subcommand is a module; this file only ties the
//! arguments to them and turns outcomes into exit codes.

mod arguments;
mod check;
mod cluster;
mod demo;
mod events;
mod explain;
mod loss;
mod mdstat;
mod mirror;
mod offline;
mod outcome;
mod progress;
mod stats;
mod verify;
mod wait;

use clap::Parser;
use mirror_core::control::DeviceRequest;

use arguments::{Arguments, Command};
use outcome::Outcome;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let global = &arguments.global;
    match run(&arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => failure.report(global.json),
    }
}

fn run(arguments: &Arguments) -> Outcome {
    let global = &arguments.global;
    match &arguments.command {
        Command::Keygen { file } => offline::keygen(global, file),
        Command::Check { offline } => check::run(global, *offline),
        Command::Demo { attach } => Ok(demo::run(*attach)?),
        Command::Completions { shell } => {
            offline::completions(*shell);
            Ok(())
        }
        Command::Init {
            mirror,
            adopt,
            force,
        } => offline::init(global, mirror, *adopt, *force),
        online => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(run_online(global, online))
        }
    }
}

async fn run_online(global: &arguments::Global, command: &Command) -> Outcome {
    match command {
        Command::Mdstat {
            mirror,
            stats,
            watch,
        } => mdstat::run(global, mirror.as_deref(), *stats, *watch).await,
        Command::Metrics => {
            print!("{}", global.client().metrics().await?);
            Ok(())
        }
        Command::Wait { mirror, condition } => wait::run(global, mirror, *condition).await,
        Command::Verify {
            mirror,
            repair,
            no_wait,
        } => verify::run(global, mirror, *repair, *no_wait).await,
        Command::Events { follow } => events::run(global, *follow).await,
        Command::Cluster(command) => cluster::run(global, command).await,
        Command::Attach { mirror } => mirror::device(global, mirror, DeviceRequest::Attach).await,
        Command::Detach { mirror, force } => {
            mirror::device(global, mirror, DeviceRequest::Detach { force: *force }).await
        }
        Command::Explain { mirror } => explain::run(global, mirror).await,
        command => {
            let (mirror, request) = command
                .request()
                .expect("every other command is a request to one mirror");
            mirror::run(global, mirror, &request).await
        }
    }
}
