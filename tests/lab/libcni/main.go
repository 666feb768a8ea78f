// What libcni makes of conf files: one path a line on stdin, one JSON object a line on stdout.
// Which function reads which file is as in containerd (go-cni, loadFromConfDir).
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
)

type verdict struct {
	Error   string
	Name    string
	Types   []string
	Confs   []json.RawMessage // as plugins get them on stdin
	Version string
}

func load(path string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(path) == ".conflist" {
		return libcni.ConfListFromFile(path)
	}
	conf, err := libcni.ConfFromFile(path)
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(conf)
}

func judge(path string) (v verdict) {
	list, err := load(path)
	if err == nil {
		if wrong := utils.ValidateNetworkName(list.Name); wrong != nil {
			err = wrong
		}
	}
	if err != nil {
		return verdict{Error: err.Error()}
	}
	v.Name, v.Version = list.Name, list.CNIVersion
	for _, plugin := range list.Plugins {
		given := map[string]interface{}{"name": list.Name, "cniVersion": list.CNIVersion}
		called, err := libcni.InjectConf(plugin, given)
		if err != nil {
			return verdict{Error: err.Error()}
		}
		v.Types = append(v.Types, called.Network.Type)
		v.Confs = append(v.Confs, called.Bytes)
	}
	return v
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		out, err := json.Marshal(judge(lines.Text()))
		if err != nil {
			panic(err)
		}
		fmt.Println(string(out))
	}
}
