package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// Plugins undo by the result that they are given as prevResult: without it the firewall plugin, for one, keeps its
// rules for the sandbox's address. libcni has a result for DEL only after the whole list succeeded, so an ADD that
// stops half-way, because a later plugin fails, hangs or prints garbage or because the daemon is killed, would leave
// what the earlier plugins did.
//
// Therefore every result is appended to the attachment's record as soon as its plugin ended, and before the next plugin
// runs; DEL is given the last one. Both happen where plugins are executed. That depends neither on the format of
// libcni's cache, which is internal to libcni and not written atomically, nor on how libcni walks the list for DEL.

// resultLog appends the results of one ADD to a record. libcni runs the plugins of an ADD one after another, so it
// needs no lock.
type resultLog struct {
	held  *os.File
	noted bool // a result is in the record
}

// note appends what a plugin printed after it was given conf. What is no result is passed over: libcni fails on it, and
// the last good result stays the one to undo by. So is an empty one after another result, since it would hide the
// addresses of the plugins before. An error means that DEL could not be given the result; then no more plugins may run.
func (l *resultLog) note(conf, printed []byte) error {
	result, err := parseResult(conf, printed)
	if err != nil {
		return nil
	}
	current, err := types100.NewResultFromResult(result)
	if err != nil || l.noted && len(current.IPs) == 0 && len(current.Interfaces) == 0 {
		return nil
	}
	b, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	// The newline comes first so that it also ends a line that an earlier write left torn.
	if _, err := l.held.Write(append([]byte{'\n'}, b...)); err != nil {
		return fmt.Errorf("record result: %w", err)
	}
	l.noted = true
	return nil
}

// parseResult reads a result as libcni does: one without a version is of the version of the configuration.
func parseResult(conf, printed []byte) (types.Result, error) {
	raw := map[string]json.RawMessage{}
	if err := json.Unmarshal(printed, &raw); err != nil {
		return nil, err
	}
	var said string
	_ = json.Unmarshal(raw["cniVersion"], &said) // what is no text is no version
	if said != "" {
		return create.Create(said, printed)
	}
	decoder := version.ConfigDecoder{}
	confVersion, err := decoder.Decode(conf)
	if err != nil {
		return nil, err
	}
	if raw == nil { // "null" was printed
		raw = map[string]json.RawMessage{}
	}
	if raw["cniVersion"], err = json.Marshal(confVersion); err != nil {
		return nil, err
	}
	if printed, err = json.Marshal(raw); err != nil {
		return nil, err
	}
	return create.Create(confVersion, printed)
}

// lastResult finds the last result in the lines that resultLog appended, nil when there is none. A line that a kill cut
// short is passed over.
func lastResult(lines []byte) types.Result {
	for len(lines) > 0 {
		i := bytes.LastIndexByte(lines, '\n') // -1 for the first line, which then is all that is left
		if result, err := create.CreateFromBytes(lines[i+1:]); err == nil {
			return result
		}
		lines = lines[:max(i, 0)]
	}
	return nil
}

// prevResult is what DEL is to be given, in the version of the configuration; nil when there is nothing or when DEL of
// that version takes none.
func (r *record) prevResult(cniVersion string) (json.RawMessage, error) {
	if r.result == nil || !atLeast(cniVersion, "0.4.0") {
		return nil, nil
	}
	result, err := r.result.GetAsVersion(cniVersion)
	if err != nil {
		return nil, fmt.Errorf("convert result to version %s: %w", cniVersion, err)
	}
	return json.Marshal(result)
}

// withPrevResult puts a result into the configuration that a plugin reads.
func withPrevResult(conf []byte, result json.RawMessage) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(conf, &fields); err != nil {
		return nil, fmt.Errorf("parse configuration of plugin: %w", err)
	}
	fields["prevResult"] = result
	return json.Marshal(fields)
}
