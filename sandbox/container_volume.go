package sandbox

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// volumes prepares the mounts that show an image, by index, and returns those images' references by digest. It is the
// container's own mount namespace that they are mounted in, so there is nothing to undo but the use of the image, which
// ends with the snapshot. The kubelet knows an error by its first word.
func (c *Container) volumes(
	ctx context.Context, mounts []*runtime.Mount,
) (map[int]specs.Mount, map[string]string, error) {
	var volumes map[int]specs.Mount
	var refs map[string]string
	for i, m := range mounts {
		image := m.GetImage().GetImage()
		if image == "" {
			continue // A host_path, or an error that Build finds.
		}
		mount, ref, err := c.m.config.Images.PrepareVolume(ctx, c.id, image, m.GetImageSubPath())
		if err != nil {
			return nil, nil, fmt.Errorf("%w: mounts[%d]: %w", crierrors.ErrImageVolumeMountFailed, i, err)
		}
		if volumes == nil {
			volumes, refs = make(map[int]specs.Mount), make(map[string]string)
		}
		volumes[i], refs[image] = mount, ref
	}
	return volumes, refs, nil
}
