#pragma once
// The keys of a model file that say which device of our own runs the model and how: DeviceSpec as its author writes it.
// A key belongs to some devices and is refused on the others by name, because a key that nobody reads would be a
// promise that nobody keeps.
//
// Pure, any thread.

#include <string_view>

#include "runtime/agent/canonical.h"
#include "runtime/agent/tree_reader.h"
#include "runtime/base/agent_spec.h"

namespace mainstay {

/// Whether the model runs on a device of our own: "neuron_core_sim" or "nrt".
bool is_own_device(std::string_view device);

/// What a model on `device` has where its file says nothing. What the compiled graphs of "nrt" decide is 0 or empty.
DeviceSpec default_device_spec(std::string_view device);

/// Refuses the keys of `root` that are not for `device`.
void refuse_foreign_keys(TableReader& root, std::string_view device);
/// The keys of a device of our own. Not for others.
DeviceSpec read_device_keys(TableReader& root, Problem& problem, std::string_view device);
/// What is not the default of `device`.
void put_device_keys(CanonicalObject& out, const DeviceSpec& spec, std::string_view device);

}  // namespace mainstay
