//! Flows that leave their server, for another one or for good: since who gets whom has changed, or somebody said so. A part of
//! them does in each turn.

use std::net::UdpSocket;
use std::time::Instant;

use nix::errno::Errno;
use tracing::debug;
use wire::report::EndReason;

use super::flow::{Flow, may_go_on};
use super::{FLOWS_PER_TURN, FlowId, Flows};
use crate::model::{Model, ServerId, ServiceId};
use crate::net::Context;
use crate::net::connect::{is_ours, missing_source};

impl Flows {
    /// Who gets whom may be another one: looks at every flow, a part of them in each turn.
    pub(crate) fn look_at_all(&mut self) {
        self.to_look_at.at_all(|| self.table.ids());
    }

    /// Lets some of those leave that are to, and looks at some of those that are to be looked at.
    pub(crate) fn look(&mut self, cx: &mut Context<'_>) {
        let mut left = FLOWS_PER_TURN;
        while left > 0
            && let Some(id) = self.to_leave.pop()
        {
            if self.table.get(id).is_some_and(|flow| flow.leaves.is_some()) {
                self.look_at(id, false, cx);
                left -= 1;
            }
        }
        for id in self.to_look_at.take(left, || self.table.ids()) {
            self.look_at(id, false, cx);
        }
        if self.to_look_at.is_empty() {
            self.one_way.tidy(cx.model);
        }
    }

    /// Looks at a flow that was not looked at since the last change: whether it leaves, or goes on with another server. To one
    /// that is but better it goes when its client `asks` something: what that has asked before may still be answered.
    pub(super) fn look_at(&mut self, id: FlowId, asks: bool, cx: &mut Context<'_>) {
        let change = self.to_look_at.change();
        let Some(flow) = self.table.get_mut(id) else { return };
        if let Some(reason) = flow.leaves {
            return self.leave(id, reason, cx);
        }
        if flow.looked_after == change || flow.key.server.is_some() {
            return;
        }
        let onward = cx.model.flow_goes_to(flow.service, flow.client, flow.server);
        if onward.is_some_and(|onward| !onward.is_lost && !asks) {
            return;
        }
        flow.looked_after = change;
        if let Some(onward) = onward
            && let Err(errno) = self.go_on_with(id, onward.server, cx)
            && onward.is_lost
        {
            // Nobody may ever look at it again. The next datagram begins another one, which tries what there is.
            let (address, side) = (cx.model.server_address(onward.server), cx.model.server_side(onward.server));
            let reason = match is_ours(errno) {
                true if missing_source(errno, address, side).is_some() => EndReason::NoSource,
                true => EndReason::Shortage,
                false => EndReason::ConnectFailed,
            };
            self.end(id, reason, cx);
        }
    }

    /// Takes all of a server's flows from it: they go on with others, or end for a reason. A part of them does in each turn,
    /// and whose client sends something meanwhile.
    pub(crate) fn leave_server(&mut self, server: ServerId, reason: EndReason) {
        self.leave_where(|flow| flow.server == server, reason);
    }

    /// The same of one flow.
    pub(crate) fn leave_soon(&mut self, id: FlowId, reason: EndReason) {
        let Some(flow) = self.table.get_mut(id) else { return };
        if flow.leaves.is_none() {
            self.to_leave.push(id);
        }
        flow.is_to_leave(reason);
    }

    fn leave_where(&mut self, is_meant: impl Fn(&Flow<UdpSocket>) -> bool, reason: EndReason) {
        let its = self.table.iter().filter(|(_, flow)| is_meant(flow)).map(|(id, _)| id);
        for id in its.collect::<Vec<_>>() {
            self.leave_soon(id, reason);
        }
    }

    /// Flows that have had their turn to leave, and as many as will have when the last that waits now has had it.
    pub(crate) fn ends(&self) -> (u64, u64) {
        (self.to_leave.done(), self.to_leave.done_then())
    }

    /// Takes a flow from its server: it goes on with another one, or ends for a reason.
    fn leave(&mut self, id: FlowId, reason: EndReason, cx: &mut Context<'_>) {
        let Some(flow) = self.table.get(id) else { return };
        let may_move = flow.key.server.is_none() && may_go_on(reason);
        let next = may_move.then(|| cx.model.flow_goes_on_with(flow.service, flow.client, &[flow.server])).flatten();
        if let Some(server) = next {
            let _ = self.go_on_with(id, server, cx);
        }
        let stays = |flow: &Flow<_>| next.is_none_or(|server| flow.server != server);
        if self.table.get(id).is_some_and(stays) {
            self.end(id, reason, cx);
        }
    }

    /// The flows of a server, and when each of them moved.
    pub(crate) fn of_server(&self, server: ServerId) -> impl Iterator<Item = (Instant, FlowId)> {
        self.table.iter().filter(move |(_, flow)| flow.server == server).map(|(id, flow)| (flow.moved, id))
    }

    /// Ends the flows of a service whose clients it lets in no more.
    pub(crate) fn end_unwelcome(&mut self, service: ServiceId, model: &Model) {
        let is_unwelcome = |flow: &Flow<_>| flow.service == service && !model.lets_in(service, flow.client.ip());
        self.leave_where(is_unwelcome, EndReason::Denied);
    }

    /// A flow goes on with another server, unless no socket can be had for it.
    pub(super) fn go_on_with(&mut self, id: FlowId, server: ServerId, cx: &mut Context<'_>) -> Result<(), Errno> {
        let Some(client) = self.table.get(id).map(|flow| flow.client) else { return Ok(()) };
        let socket = self.connect_to(server, client, cx)?;
        let Some(flow) = self.table.get_mut(id) else { return Ok(()) };
        let before = flow.server;
        flow.goes_on_with(server, socket);
        if before != server {
            debug!(%client, server = %cx.model.server_address(server), "flow goes on with another server");
            cx.model.flow_moved(before, server);
        }
        let _ = self.wait_for_answers(id, cx);
        Ok(())
    }
}
