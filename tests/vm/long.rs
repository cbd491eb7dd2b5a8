//! Cases that take minutes each.

use anyhow::Result;
use local_pair::Side::{First, Second};

use crate::crash_consistency::{self, Case};
use crate::replayed_disk::FileSystem;
use crate::{agents, kernel_attach, memory, power};

#[test]
fn xfs_sees_a_pause_and_no_error_when_mirrord_is_killed_under_load() -> Result<()> {
    kernel_attach::xfs_sees_a_pause_and_no_error()
}

#[test]
fn what_is_compiled_on_the_mirror_is_right_when_mirrord_is_killed_meanwhile() -> Result<()> {
    kernel_attach::what_is_compiled_on_the_mirror_is_right()
}

#[test]
fn a_secondary_that_loses_its_power_is_missed_by_nobody() -> Result<()> {
    power::a_secondary_that_loses_its_power_is_missed_by_nobody()
}

#[test]
fn a_mounted_file_system_grows_with_its_mirror() -> Result<()> {
    kernel_attach::a_mounted_file_system_grows_with_its_mirror()
}

#[test]
fn what_cannot_be_attached_or_detached_is_said_with_a_remedy() -> Result<()> {
    kernel_attach::what_cannot_be_attached_or_detached_is_said_with_a_remedy()
}

#[test]
fn every_commit_is_there_when_both_lose_their_power_the_primary_first() -> Result<()> {
    power::both_lose_their_power([First, Second])
}

#[test]
fn every_commit_is_there_when_both_lose_their_power_the_secondary_first() -> Result<()> {
    power::both_lose_their_power([Second, First])
}

#[test]
fn an_isolated_server_is_reset_by_its_watchdog_and_the_other_one_goes_on() -> Result<()> {
    agents::an_isolated_server_ends_itself("watchdog-reset", "softdog: Initiating system reboot")
}

#[test]
fn a_server_whose_agent_stalls_is_reset_and_the_other_one_goes_on() -> Result<()> {
    agents::a_server_whose_agent_stalls_is_reset()
}

#[test]
fn an_isolated_server_reboots_without_a_service_manager_and_the_other_one_goes_on() -> Result<()> {
    agents::an_isolated_server_ends_itself("reboot", "reboot: Restarting system")
}

#[test]
fn systemd_brings_back_what_is_killed_and_shuts_an_isolated_server_down() -> Result<()> {
    agents::systemd_brings_back_what_is_killed_and_shuts_a_server_down()
}

#[test]
fn a_reboot_that_a_unit_holds_up_comes_all_the_same() -> Result<()> {
    agents::a_reboot_that_a_unit_holds_up_comes_all_the_same()
}

#[test]
fn a_server_that_is_cut_off_gives_way_and_follows_when_it_is_back() -> Result<()> {
    agents::a_server_that_is_cut_off_gives_way_and_follows_when_it_is_back()
}

#[test]
fn a_machine_that_was_paused_past_its_lease_answers_nothing_alone() -> Result<()> {
    agents::a_machine_paused_past_its_lease_answers_nothing_alone()
}

#[test]
fn a_wall_clock_that_is_stepped_is_noticed_by_nobody() -> Result<()> {
    agents::a_wall_clock_that_is_stepped_is_noticed_by_nobody()
}

#[test]
fn a_small_machine_that_writes_more_than_its_memory_does_not_dead_lock() -> Result<()> {
    memory::writes_more_than_memory(600)
}

#[test]
fn ext4_is_in_order_on_both_sides_at_every_flush() -> Result<()> {
    crash_consistency::holds_at_every_flush(&Case {
        file_system: FileSystem::Ext4,
        records: 300,
    })
}

#[test]
fn xfs_is_in_order_on_both_sides_at_every_flush() -> Result<()> {
    crash_consistency::holds_at_every_flush(&Case {
        file_system: FileSystem::Xfs,
        records: 200,
    })
}
