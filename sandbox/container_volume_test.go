package sandbox

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imageVolume(image string) *runtime.Mount {
	return &runtime.Mount{ContainerPath: "/data", Readonly: true, Image: &runtime.ImageSpec{Image: image}, ImageSubPath: "sub"}
}

func TestImageVolumeIsKnownByDigestAlsoAfterARestart(t *testing.T) {
	r := newRig(t)
	config := containerConfig("c")
	config.Mounts = []*runtime.Mount{imageVolume("data")}
	id, err := r.m.CreateContainer(context.Background(), r.run("a"), config, "sha256:feed", "ref")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		st, err := r.m.Container(id)
		if err != nil {
			t.Fatal(err)
		}
		if st.VolumeRefs["data"] != "data@sha256:1" || st.Config.Mounts[0].Image.ImageRef != "" {
			t.Errorf("references %v, configuration %v", st.VolumeRefs, st.Config.Mounts)
		}
		r.restart()
	}
	r.start(id)
}

func TestImageVolumeThatCannotBeHadIsToldToTheKubelet(t *testing.T) {
	r := newRig(t)
	config := containerConfig("c")
	config.Mounts = []*runtime.Mount{imageVolume("other")}
	_, err := r.m.CreateContainer(context.Background(), r.run("a"), config, "sha256:feed", "ref")
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "ImageVolumeMountFailed") {
		t.Errorf("error %v", err)
	}
}
