package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cri/operator"
)

// newPullCommand makes `gantry image pull`.
func newPullCommand(c *connector) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pull REF",
		Short: "Pull an image, showing progress",
		Args:  cobra.ExactArgs(1),
	}
	user := cmd.Flags().StringP("user", "u", "",
		"name:password for the registry; with a name alone the password is read from the standard input")
	quiet := cmd.Flags().BoolP("quiet", "q", false, "print the id of the image only")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, password, err := credentials(*user, cmd.InOrStdin())
		if err != nil {
			return err
		}
		request := &operator.PullRequest{Ref: args[0], Username: name, Password: password}
		var view progressView = silentView{}
		if !*quiet {
			view = newProgressView(cmd.ErrOrStderr())
		}
		return c.with(cmd.Context(), func(d *daemonClient) error {
			id, err := d.pull(cmd.Context(), request, view)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), id)
			return nil
		})
	}
	return cmd
}

// credentials splits name:password; a password that is not there is read from r.
func credentials(user string, r io.Reader) (name, password string, err error) {
	name, password, ok := strings.Cut(user, ":")
	if user == "" || ok {
		return name, password, nil
	}
	if f, isFile := r.(*os.File); isFile && isTerminal(f) {
		return "", "", errors.New("user: expected name:password, or the password on a standard input that is no terminal")
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", "", fmt.Errorf("read password: %w", err)
	}
	return name, strings.TrimRight(line, "\r\n"), nil
}

// pull pulls an image, shows progress meanwhile, and returns the image's id.
func (d *daemonClient) pull(ctx context.Context, request *operator.PullRequest, view progressView) (string, error) {
	var id string
	defer func() { view.finish(id != "") }()
	stream, err := d.operator.Pull(ctx, request)
	if err != nil {
		return "", err
	}
	for {
		progress, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		view.update(progress.GetBlobs())
		if progress.GetImageId() != "" {
			id = progress.GetImageId()
		}
	}
	if id == "" {
		return "", errors.New("pull: the daemon ended the pull without an image id")
	}
	return id, nil
}
