#pragma once
// Every bound of the node, in one place. A refusal names the bound that refused. The values that an operator may want
// to move are defaults of config/mainstay.toml and are marked (config); the others are part of the formats.

#include <cstddef>
#include <cstdint>

namespace mainstay::limits {

// --- the door ---------------------------------------------------------------------------------------------------
constexpr size_t http_header_bytes_max = 16 * 1024;
constexpr size_t http_header_fields_max = 100;
constexpr size_t http_target_bytes_max = 4 * 1024;
constexpr size_t http_body_bytes_max = 1024 * 1024;  // (config)
constexpr size_t http_connections_max = 4096;        // (config)
constexpr size_t allowed_hosts_max = 64;
constexpr size_t host_name_bytes_max = 255;
constexpr uint32_t http_header_timeout_ms = 10'000;  // from the first byte of a request to the end of its header
constexpr uint32_t http_body_timeout_ms = 30'000;
constexpr uint32_t http_write_timeout_ms = 30'000;
constexpr uint32_t http_idle_timeout_ms = 75'000;  // between requests of a kept-alive connection
constexpr uint32_t sse_comment_interval_ms = 10'000;
constexpr size_t sse_queue_events_max = 4096;  // a reader slower than its stream is cut off here
constexpr size_t json_depth_max = 64;
constexpr size_t list_page_max = 100;
constexpr size_t idempotency_key_bytes_max = 256;

// --- a session --------------------------------------------------------------------------------------------------
constexpr size_t input_items_max = 64;           // of one request
constexpr size_t input_bytes_max = 512 * 1024;   // text of one request's items
constexpr size_t input_queue_max = 16;           // accepted inputs that wait for the open turn
constexpr size_t options_bytes_max = 64 * 1024;  // JSON of the request fields that a turn keeps
constexpr size_t metadata_pairs_max = 16;        // OpenAI's bounds
constexpr size_t metadata_key_bytes_max = 64;
constexpr size_t metadata_value_bytes_max = 512;
constexpr uint32_t steps_per_turn_default = 32;  // (config, agent)
constexpr uint32_t steps_per_turn_max = 1024;
constexpr uint32_t tool_calls_per_step_max = 32;        // parallel calls that one model step may ask for
constexpr uint64_t turn_duration_ms_default = 600'000;  // (config)
constexpr size_t tool_arguments_bytes_max = 256 * 1024;
constexpr size_t tool_result_bytes_max = 1024 * 1024;
constexpr size_t model_text_bytes_max = 1024 * 1024;      // of one model step
constexpr size_t model_step_bytes_max = 6 * 1024 * 1024;  // text, names and arguments of one step, answers of builtins
constexpr size_t name_bytes_max = 512;                    // of a call id, tool, server label, model, finish reason
constexpr size_t turn_bytes_max = 64 * 1024 * 1024;       // texts of one turn; beyond, no further step
constexpr size_t withheld_items_max = 1024;               // partial texts of failed steps that one turn keeps
constexpr size_t reason_bytes_max = 4 * 1024;             // of a message or reason that an event keeps
constexpr size_t history_window_bytes = 128 * 1024;       // settled history kept in memory for prompts (config)
constexpr size_t history_window_kept = 2;  // a window that is full keeps one part in so many: a prompt begins anew then
constexpr size_t history_windows_read = 4;      // how far back the turns are read that make a window again, in windows
constexpr size_t step_tokens_max = 256 * 1024;  // sampled ids that one step keeps; beyond, its text counts
constexpr size_t tokenizer_hash_bytes_max = 64;
constexpr size_t memory_entries_max = 256;  // builtin memory of one session
constexpr size_t memory_key_bytes_max = 256;
constexpr size_t memory_value_bytes_max = 8 * 1024;
constexpr size_t memory_bytes_max = 64 * 1024;
constexpr size_t waits_max = 64;  // open waits of one session
constexpr uint64_t wait_duration_ms_max = 366ull * 24 * 3600 * 1000;
constexpr uint64_t idempotency_key_lifetime_ms = 24ull * 3600 * 1000;
constexpr size_t recent_keys_max = 1024;  // keys that a session may hold before they are in LMDB
constexpr size_t forks_depth_max = 1024;
constexpr size_t recent_forks_max = 64;           // children by which a session knows a fork that is asked for again
constexpr size_t input_parts_max = 4096;          // text parts of one request's items
constexpr size_t batch_elements_max = 16 * 1024;  // events, items and parts of one batch
constexpr size_t batch_unpacked_bytes_max = 16 * 1024 * 1024;  // what a batch of any packed size may unpack to

// --- memory of a user -------------------------------------------------------------------------------------------
constexpr size_t agent_memories_max = 1;           // [[memory]] entries of an agent, today
constexpr size_t user_memory_bytes_min = 256;      // of max_size; at most memory_bytes_max
constexpr size_t user_memory_calls_kept = 32;      // newest calls that changed it: repeated, they change nothing
constexpr size_t user_memories_cached_max = 1024;  // of a node; others are read from the store

// --- the store --------------------------------------------------------------------------------------------------
constexpr size_t record_bytes_max = 8 * 1024 * 1024;         // one journal record, header included
constexpr size_t segment_bytes = 64 * 1024 * 1024;           // (config)
constexpr size_t segments_ready_min = 2;                     // empty segments kept allocated ahead of the writer
constexpr size_t group_bytes_max = 4 * 1024 * 1024;          // one synced write
constexpr uint32_t group_gather_us = 300;                    // the longest that a group waits under load
constexpr size_t group_gather_share = 3;                     // ... for this part of the sessions at work
constexpr size_t group_gather_records_max = 64;              // ... and for no more records than this
constexpr size_t append_queue_bytes_max = 64 * 1024 * 1024;  // records waiting for their group: beyond, 503
constexpr size_t apply_backlog_bytes_max =
    256 * 1024 * 1024;                                  // durable records that LMDB does not contain yet: beyond, 503
constexpr size_t apply_batch_bytes = 32 * 1024 * 1024;  // journal bytes of one LMDB transaction under load
// Key rows that a transaction examines for expired ones: more than it may add, so that the sweep outruns the writers.
constexpr size_t key_sweep_rows_min = 256, key_sweep_rows_per_added = 2;
constexpr uint32_t apply_interval_ms = 1000;              // the longest that a record waits for its transaction
constexpr size_t state_map_bytes = 1ull << 40;            // sparse; never resized while readers live
constexpr size_t disk_reserve_bytes = 256 * 1024 * 1024;  // below this much free disk the node is read-only (config)
constexpr uint32_t deleted_text_lifetime_ms = 3600'000;   // a deleted session's text is in no file after this (config)

// --- the cluster ------------------------------------------------------------------------------------------------
constexpr size_t replicas_max = 7;                                   // of one shard
constexpr size_t replication_groups_in_flight_max = 4;               // written and not synced, of one shard
constexpr size_t replication_message_bytes_max = group_bytes_max;    // payloads of one append; one record always goes
constexpr size_t replication_message_records_max = 1024;             // ... and records
constexpr size_t replication_window_bytes = 16 * 1024 * 1024;        // sent to one replica and not answered
constexpr size_t replication_log_bytes_max = 64 * 1024 * 1024;       // of one shard in memory, for replicas behind
constexpr size_t replication_log_records_max = 256 * 1024;           // beyond, they are sent a snapshot
constexpr size_t replication_uncommitted_max = 16 * 1024;            // records of one shard; beyond, 503
constexpr size_t replication_reads_max = 16 * 1024;                  // reads of one shard that wait for a round
constexpr size_t replication_snapshot_part_bytes_max = 1024 * 1024;  // of one message
constexpr size_t replication_snapshot_parts_in_flight = 4;           // of one transfer
constexpr uint32_t replication_heartbeat_ms = 100;                   // between appends to a replica, full or empty
constexpr uint32_t replication_resend_ms = 200;                      // without progress, what was sent is sent again
constexpr uint32_t replica_timeout_ms = 500;                         // an in-sync replica silent for so long leaves
constexpr uint32_t replica_probation_ms = 30'000;                    // good behaviour before it may come back
constexpr uint32_t node_lease_ms = 5'000;                            // (etcd) a node that is silent for so long is gone
constexpr uint32_t coordinator_list_interval_ms = 2'000;             // records are read again, whatever watches say
constexpr uint32_t coordinator_request_timeout_ms = 2'000;           // then the outcome of a change is unknown
constexpr uint32_t take_over_stagger_ms = 50;                        // between candidates, by their order on record
constexpr size_t cluster_nodes_max = 128;
constexpr size_t coordinator_urls_max = 9;  // (config)
constexpr size_t cluster_shards_max = 4096;
constexpr size_t coordinator_answer_bytes_max = 32 * 1024 * 1024;  // all records and leases in one answer
constexpr size_t coordinator_records_per_change_max = 64;          // (etcd) changes of records in one transaction
constexpr size_t placement_moves_max = 4;                          // wishes under way at once, of the whole cluster

// --- between nodes ----------------------------------------------------------------------------------------------
constexpr size_t link_chunk_bytes_max = 256 * 1024;          // one frame's payload; larger messages go in several
constexpr size_t link_message_bytes_max = 16 * 1024 * 1024;  // put together again
constexpr size_t link_window_bytes = 8 * 1024 * 1024;        // sent to a peer and not taken by it
constexpr size_t link_queue_bytes_max = 64 * 1024 * 1024;    // waiting for a peer's window; beyond, dropped and counted
constexpr size_t link_calls_max = 4096;                      // under way with one peer, each way
constexpr size_t link_connections_max = 2 * cluster_nodes_max;  // accepted, handshakes included
constexpr uint32_t link_handshake_ms = 5'000;                   // from accept to a peer that has said who it is
constexpr uint32_t link_silence_ms = 3'000;                     // a peer that says nothing for so long is cut off
constexpr uint32_t link_reconnect_min_ms = 50, link_reconnect_max_ms = 2'000;
constexpr uint32_t hop_wait_ms = 15'000;  // for a shard's owner, by a request that came to another node
constexpr uint32_t hop_attempts_max = 8;
constexpr uint64_t hand_over_leaving_ms = 10'000;        // a node that stops waits so long for calls of its sessions
constexpr uint64_t hand_over_unfollowed_ms = 60'000;     // ... one whose peers would not ask for them afterwards
constexpr uint64_t pause_reserve_ms = 2'000;             // then so long for steps to pause
constexpr uint64_t pause_recheck_ms = 250;               // a step that may not begin looks again after so long
constexpr uint32_t kv_move_ms_max = 2'000;               // a hand-over waits so long for KV blocks to go ahead of it
constexpr uint64_t kv_move_bytes_max = 256ull << 20;     // of blocks that go ahead of one shard
constexpr size_t kv_moves_max = 4;                       // shards whose blocks are on their way at once; others wait
constexpr size_t kv_message_bytes_max = 1024 * 1024;     // of blocks in one message; a larger one goes alone
constexpr size_t kv_message_blocks_max = 1024;           // named in one message
constexpr size_t node_models_max = 64;                   // (config) names of models that one node computes
constexpr size_t model_steps_served_max = 4096;          // of other nodes, at once; beyond, they ask another
constexpr uint32_t model_step_look_ms = 50;              // between looks whether the asking node still wants its steps
constexpr size_t model_step_places_max = 65'536;         // sessions of which a node remembers where their KV is
constexpr size_t model_step_part_bytes_max = 64 * 1024;  // of text in one part of a step's answer
constexpr uint32_t left_claim_ms = 500;        // a session that begins waits so long to hear what goes on elsewhere
constexpr uint32_t left_work_look_ms = 5'000;  // between looks at work that was left behind
constexpr uint32_t left_reclaim_ms = 250;      // between questions of a node whose answer failed, ...
constexpr uint32_t left_reclaims_max = 40;     // ... so often at most, and only while it lives
constexpr size_t left_work_bytes_max = 256ull << 20;  // of outcomes that a node keeps; beyond, they are lost
constexpr uint64_t left_work_keep_ms = 60'000;  // an outcome is kept so long, and a model speaks so long for nobody

// --- the node ---------------------------------------------------------------------------------------------------
constexpr size_t sessions_active_max = 50'000;   // (config) actors in memory; beyond, the longest idle is put to sleep
constexpr uint32_t passivate_after_ms = 10'000;  // (config)
constexpr uint32_t restarts_max = 3;             // of one session within restart_window_ms, then quarantine
constexpr uint32_t restart_window_ms = 60'000;
constexpr uint32_t tenant_quarantines_max = 64;  // then the tenant's supervisor escalates
constexpr size_t model_requests_in_flight_max = 4096;
constexpr size_t tool_calls_in_flight_max = 1024;
constexpr size_t resume_parallel_max = 256;  // open turns taken up at once after a start

// --- outward ----------------------------------------------------------------------------------------------------
constexpr size_t upstream_body_bytes_max = 16 * 1024 * 1024;
constexpr size_t upstream_line_bytes_max = 1024 * 1024;  // one SSE line or one JSON-RPC line
constexpr uint32_t upstream_connect_timeout_ms = 10'000;
constexpr uint32_t upstream_stall_timeout_ms = 60'000;   // no byte for this long (config)
constexpr uint32_t upstream_total_timeout_ms = 600'000;  // of one request that has no deadline of its own
constexpr uint32_t upstream_cooldown_ms = 10'000;        // an address that refused a connection is passed over so long
constexpr size_t upstream_header_bytes_max = 64 * 1024;  // of one answer
constexpr size_t upstream_error_bytes_max = 64 * 1024;   // body of an error answer that is kept
constexpr size_t upstream_error_text_max = 512;          // of an upstream's own words in our message
constexpr uint32_t upstream_retry_after_ms_max = 3600'000;
constexpr size_t upstream_transfers_max = 8192;  // requests in flight of one client
constexpr size_t upstream_url_bytes_max = 4 * 1024;
constexpr uint32_t tool_call_timeout_ms_default = 60'000;  // (config)
constexpr uint32_t tool_start_timeout_ms = 60'000;
constexpr size_t tool_servers_max = 64;
constexpr size_t tools_per_server_max = 512;
constexpr size_t tool_name_bytes_max = 64;                      // as a model is shown it: OpenAI's bound
constexpr size_t tool_line_bytes_max = 8 * 1024 * 1024;         // one JSON-RPC line of a tool server
constexpr size_t tool_queue_bytes_max = 16 * 1024 * 1024;       // requests that wait for one server to read them
constexpr size_t tool_list_bytes_max = 4 * 1024 * 1024;         // names, descriptions and schemas of one server
constexpr size_t tool_list_pages_max = 64;                      // of one tools/list
constexpr size_t tool_listings_max = 1024;                      // remembered lists of tools
constexpr size_t tool_bad_lines_max = 1000;                     // lines that are no message, since the server's start
constexpr uint64_t tool_notifications_per_second_max = 10'000;  // of one server; beyond, it is stopped
constexpr size_t tool_log_line_bytes_max = 2048;                // one line of a server's stderr
constexpr size_t tool_log_lines_per_minute_max = 120;           // of one server; the rest is counted
constexpr uint32_t tool_server_idle_ms_default = 600'000;       // (config) then the server is stopped
constexpr uint32_t tool_server_stop_ms = 2'000;                 // after closing stdin, and again after SIGTERM
constexpr uint32_t tool_server_backoff_min_ms = 250;            // from the second failure in a row; doubles
constexpr uint32_t tool_server_backoff_max_ms = 30'000;

// --- what an author or operator writes --------------------------------------------------------------------------
constexpr size_t agent_file_bytes_max = 512 * 1024;  // one agent, model or settings file
constexpr size_t agent_files_max = 1024;             // of one directory
constexpr size_t agent_name_bytes_max = 128;
constexpr size_t agent_instructions_bytes_max = 256 * 1024;
constexpr size_t agents_max = 1024;            // names in the catalogue, agents and models each
constexpr size_t agent_versions_max = 64;      // of one name; beyond, the oldest is forgotten
constexpr size_t agent_text_bytes_max = 8192;  // any other text of an agent or model
constexpr size_t toolsets_max = 32;            // [[tools]] entries of one agent
constexpr size_t tool_command_words_max = 64;
constexpr size_t tool_env_max = 64;
constexpr size_t model_upstreams_max = 16;
constexpr size_t script_steps_max = 256;
constexpr uint32_t script_delay_ms_max = 600'000;
constexpr uint32_t context_window_tokens_max = 64 * 1024 * 1024;
constexpr uint32_t tokens_per_turn_max = 1'000'000'000;
constexpr uint32_t retry_attempts_max = 100;
constexpr uint64_t retry_backoff_ms_min = 1;
constexpr uint64_t retry_backoff_ms_max = 3600'000;
constexpr uint32_t retry_after_ms_max = 3600'000;  // an upstream that asks for more is given up on
constexpr uint32_t tool_call_timeout_ms_max = 3600'000;
constexpr uint32_t protocol_retries_max = 2;  // of a step whose upstream broke the protocol

// --- models and token devices -----------------------------------------------------------------------------------
constexpr size_t model_config_bytes_max = 1024 * 1024;             // config.json
constexpr size_t safetensors_header_bytes_max = 32 * 1024 * 1024;  // JSON of one file
constexpr size_t safetensors_index_bytes_max = 32 * 1024 * 1024;   // model.safetensors.index.json
constexpr size_t safetensors_tensors_max = 65'536;                 // of one file
constexpr size_t safetensors_shards_max = 1024;                    // files of one model
constexpr size_t tensor_rank_max = 8;                              // dimensions of one tensor
constexpr size_t tensor_name_bytes_max = 512;
constexpr size_t tokenizer_bytes_max = 64 * 1024 * 1024;  // tokenizer.json
constexpr size_t vocabulary_max = 2 * 1024 * 1024;        // ids of tokens are below
constexpr size_t tokenizer_merges_max = 4 * 1024 * 1024;
constexpr size_t added_tokens_max = 64 * 1024;
constexpr size_t token_bytes_max = 1024;                 // of one token
constexpr size_t stop_sequences_max = 16;                // of one request
constexpr size_t stop_sequence_bytes_max = 1024;         // of one of them
constexpr size_t grammar_schema_bytes_max = 512 * 1024;  // parameters of all tools of one request
constexpr size_t grammar_nodes_max = 16 * 1024;          // of the compiled schemas of one request
constexpr size_t grammar_depth_max = 24;                 // objects and arrays within each other
constexpr size_t grammar_properties_max = 64;            // of one object
constexpr size_t grammar_number_bytes_max = 32;          // of one number that a model writes under a grammar
constexpr size_t calc_expression_bytes_max = 1024;       // of the builtin tool calc
constexpr size_t calc_depth_max = 32;                    // parentheses within each other
constexpr size_t price_list_entries_max = 10'000;        // of one agent
constexpr size_t price_item_bytes_max = 256;
constexpr uint32_t model_layers_max = 1024;
constexpr uint32_t model_width_max = 65'536;          // hidden_size, and heads * head_dim
constexpr uint32_t model_feed_forward_max = 262'144;  // intermediate_size
constexpr uint32_t model_vocabulary_max = 1'048'576;
constexpr uint32_t model_head_dim_max = 512;
constexpr uint32_t model_context_max = 16 * 1024 * 1024;
constexpr uint32_t device_threads_max = 256;
constexpr uint32_t device_block_tokens_max = 128;
constexpr uint32_t device_blocks_max = 16 * 1024 * 1024;
constexpr uint32_t device_rows_max = 1024;              // sequences of one step
constexpr uint32_t device_tokens_max = 8192;            // tokens of one step
constexpr uint32_t device_spin_us_max = 20;             // a device's thread that waits longer for the others sleeps
constexpr size_t nrt_manifest_bytes_max = 1024 * 1024;  // nrt_model.json
constexpr size_t nrt_graphs_max = 256;                  // compiled graphs of one model folder
constexpr size_t nrt_tensors_max = 4096;                // inputs and outputs of one graph
constexpr uint64_t nrt_graph_bytes_max = 64ull << 30;   // one NEFF
constexpr size_t nrt_frame_bytes_max = 257ull << 20;  // one message between daemon and worker: a block and its framing
constexpr uint32_t nrt_step_timeout_ms_default = 30'000;    // one call; beyond, the worker is killed
constexpr uint32_t nrt_start_timeout_ms_default = 900'000;  // loading the graphs
constexpr uint32_t nrt_timeout_ms_max = 24 * 3600'000;
constexpr uint32_t nrt_stop_ms = 2'000;             // a worker that was let go has this long to unload
constexpr size_t nrt_stderr_line_bytes_max = 1024;  // of the last line that a dead worker's explanation quotes

constexpr uint32_t device_step_timeout_ms = 30'000;   // a device that takes longer for one step is given up
constexpr uint32_t device_load_timeout_ms = 600'000;  // ... and for loading its model
constexpr uint32_t device_restarts_max = 5;  // of one device within device_restart_window_ms, then it stays down
constexpr uint32_t device_restart_window_ms = 60'000;
constexpr uint32_t devices_per_model_max = 64;
constexpr uint64_t kv_device_bytes_default = 64ull << 20;  // (model) of one simulated device's memory for KV blocks
constexpr uint64_t kv_host_bytes_default = 256ull << 20;   // (model) of the host's memory for KV blocks
constexpr uint32_t new_tokens_default = 1024;              // of one model step where nobody says a bound
constexpr size_t scheduler_decisions_kept = 256;           // of one model, for `mainstay worker show`

// --- batching ---------------------------------------------------------------------------------------------------
constexpr size_t kv_saves_per_work_max = 16;              // blocks copied off a device before one step
constexpr size_t kv_loads_per_work_max = 32;              // ... and onto it
constexpr size_t kv_disk_bytes_default = 1ull << 30;      // (config) of the KV cache's tier on disk
constexpr size_t kv_disk_value_bytes_max = 256ull << 20;  // one block with its framing
constexpr size_t kv_disk_map_bytes_max = 1ull << 42;
constexpr size_t scheduler_waiting_max = 65'536;         // (config) model steps that wait, of all tenants
constexpr size_t scheduler_waiting_tenant_max = 16'384;  // (config) of one tenant
constexpr size_t scheduler_devices_max = 1024;           // of one model
constexpr uint32_t scheduler_redispatch_max = 2;         // of a step whose device was lost
constexpr size_t scheduler_admissions_per_step_max = 32;
constexpr size_t scheduler_bypass_max = 64;  // others that may overtake a step which fits nowhere yet
constexpr size_t scheduler_stop_tokens_max = 64;
constexpr size_t fair_idle_max = 65'536;     // tenants and root sessions whose service is remembered while idle
constexpr size_t measured_tools_max = 1024;  // names of tools whose durations are remembered

static_assert(input_bytes_max < http_body_bytes_max);
static_assert(record_bytes_max < segment_bytes / 4);
static_assert(http_body_bytes_max + options_bytes_max < record_bytes_max);
static_assert(memory_bytes_max * 6 + memory_entries_max * 8 + user_memory_calls_kept * 20 + 4096 < record_bytes_max,
              "a user's memory as JSON, in which a control character takes six bytes");
static_assert(model_step_bytes_max + 512 * 1024 + step_tokens_max * 4 < record_bytes_max,
              "a settled step must fit a record");
static_assert(model_step_bytes_max + 512 * 1024 + step_tokens_max * 4 + batch_elements_max * 128 <
                  batch_unpacked_bytes_max,
              "a text of NUL packs to nearly nothing, and must unpack all the same");
static_assert(input_parts_max + input_items_max < batch_elements_max / 2);
static_assert(tool_line_bytes_max > 6 * tool_result_bytes_max,
              "a result within its bound must fit a line even when each byte is escaped as \\uXXXX");
static_assert(segment_bytes * 2 < apply_backlog_bytes_max, "a full segment must be able to wait");
static_assert(replication_message_bytes_max <= replication_window_bytes, "a message must fit its window");
static_assert(replication_heartbeat_ms * 3 <= replica_timeout_ms, "one lost heartbeat is no silence");
static_assert(replica_timeout_ms < node_lease_ms);
static_assert(link_chunk_bytes_max <= link_window_bytes && link_message_bytes_max <= link_queue_bytes_max);
static_assert(replication_message_bytes_max + record_bytes_max <= link_message_bytes_max, "an append fits a message");
static_assert(2 * kv_message_bytes_max + kv_message_blocks_max * 128 < link_message_bytes_max);
static_assert(model_step_bytes_max + step_tokens_max * 4 + 1024 * 1024 < link_message_bytes_max,
              "a step's result fits one message between nodes");
static_assert(kv_disk_value_bytes_max < nrt_frame_bytes_max, "a block that the tiers take must fit a message");

}  // namespace mainstay::limits
