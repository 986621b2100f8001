package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri/operator"
)

// newImageCommand makes `gantry image`.
func newImageCommand(c *connector) *cobra.Command {
	image := &cobra.Command{Use: "image", Aliases: []string{"images"}, Short: "Pull, list, move and remove images"}
	image.AddCommand(newPullCommand(c), newImageListCommand(c), newImageRemoveCommand(c), newTagCommand(c),
		newImportCommand(c), newExportCommand(c),
		newPinCommand(c, "pin", true, "Keep images from being removed to free space"),
		newPinCommand(c, "unpin", false, "Let images be removed to free space again"))
	return image
}

// listedImage is an image as `image ls -o json` prints it.
type listedImage struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	// Size is what the CRI tells, in bytes.
	Size   uint64 `json:"size"`
	Pinned bool   `json:"pinned"`
	// Handler is the runtime handler that the image was pulled for.
	Handler string `json:"runtimeHandler,omitempty"`
}

// newImageListCommand makes `gantry image ls`.
func newImageListCommand(c *connector) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls [REF]",
		Aliases: []string{"list"},
		Short:   "List images",
		Args:    cobra.MaximumNArgs(1),
	}
	output := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var request runtime.ListImagesRequest
		if len(args) > 0 {
			request.Filter = &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: args[0]}}
		}
		return c.with(cmd.Context(), func(d *daemonClient) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			reply, err := d.images.ListImages(ctx, &request)
			if err != nil {
				return err
			}
			images := make([]listedImage, 0, len(reply.GetImages()))
			for _, i := range reply.GetImages() {
				images = append(images, listedImage{
					// Programs want an empty list, not null.
					ID: i.GetId(), Tags: append([]string{}, i.GetRepoTags()...),
					Digests: append([]string{}, i.GetRepoDigests()...), Size: i.GetSize(), Pinned: i.GetPinned(),
					Handler: i.GetSpec().GetRuntimeHandler(),
				})
			}
			if *output == formatJSON {
				return printJSON(cmd.OutOrStdout(), images)
			}
			header, rows := imageTable(images)
			return printTable(cmd.OutOrStdout(), header, rows)
		})
	}
	return cmd
}

// imageTable lays the images out, with their runtime handlers if one of them has one.
func imageTable(images []listedImage) (header []string, rows [][]string) {
	header, rows = []string{"REPOSITORY", "TAG", "IMAGE ID", "SIZE", "HANDLER"}, imageRows(images)
	if slices.ContainsFunc(images, func(i listedImage) bool { return i.Handler != "" }) {
		return header, rows
	}
	last := len(header) - 1
	for i := range rows {
		rows[i] = rows[i][:last]
	}
	return header[:last], rows
}

// imageRows gives every tag a row, and an image without one a row by its digest.
func imageRows(images []listedImage) [][]string {
	var rows [][]string
	for _, i := range images {
		id, size := shortID(i.ID), humanBytes(int64(i.Size))
		for _, tag := range i.Tags {
			colon := strings.LastIndex(tag, ":")
			if colon <= strings.LastIndex(tag, "/") {
				colon = len(tag)
			}
			rows = append(rows, []string{tag[:colon], strings.TrimPrefix(tag[colon:], ":"), id, size, i.Handler})
		}
		if len(i.Tags) > 0 {
			continue
		}
		repository := "<none>"
		if len(i.Digests) > 0 {
			repository, _, _ = strings.Cut(i.Digests[0], "@")
		}
		rows = append(rows, []string{repository, "<none>", id, size, i.Handler})
	}
	return rows
}

// newImageRemoveCommand makes `gantry image rm`.
func newImageRemoveCommand(c *connector) *cobra.Command {
	var handler string
	cmd := &cobra.Command{
		Use:     "rm REF...",
		Aliases: []string{"remove"},
		Short:   "Remove images with all their names",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return c.with(cmd.Context(), func(d *daemonClient) error {
				var all []error
				for _, ref := range refs {
					id, err := d.removeImage(cmd.Context(), &runtime.ImageSpec{Image: ref, RuntimeHandler: handler})
					if err != nil {
						all = append(all, fmt.Errorf("remove %s: %s", ref, describe(err)))
						continue
					}
					fmt.Fprintln(cmd.OutOrStdout(), "removed", id)
				}
				return errors.Join(all...)
			})
		},
	}
	cmd.Flags().StringVar(&handler, "handler", "", "runtime handler that the images were pulled for")
	return cmd
}

// removeImage removes an image and returns its id. The CRI calls the removal of an unknown image a success; an operator
// who mistyped wants to know.
func (d *daemonClient) removeImage(ctx context.Context, spec *runtime.ImageSpec) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := d.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec})
	if err != nil {
		return "", err
	}
	if reply.GetImage() == nil {
		return "", errors.New("no such image")
	}
	_, err = d.images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: spec})
	return reply.GetImage().GetId(), err
}

// newTagCommand makes `gantry image tag`.
func newTagCommand(c *connector) *cobra.Command {
	return &cobra.Command{
		Use:   "tag REF NAME",
		Short: "Give an image one more name",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(d *daemonClient) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				_, err := d.operator.Tag(ctx, &operator.TagRequest{Source: args[0], Target: args[1]})
				return err
			})
		},
	}
}

// newPinCommand makes `gantry image pin` and `gantry image unpin`.
func newPinCommand(c *connector, name string, pinned bool, short string) *cobra.Command {
	return &cobra.Command{
		Use:   name + " REF...",
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return c.with(cmd.Context(), func(d *daemonClient) error {
				var all []error
				for _, ref := range refs {
					ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
					if _, err := d.operator.Pin(ctx, &operator.PinRequest{Ref: ref, Pinned: pinned}); err != nil {
						all = append(all, fmt.Errorf("%s", describe(err)))
					}
					cancel()
				}
				return errors.Join(all...)
			})
		},
	}
}
