/** Buttons. They give the server's reason where it refuses an act. */

import type { refreshIcon } from '@jupyterlab/ui-components';
import { ellipsesIcon } from '@jupyterlab/ui-components';
import React from 'react';

import { useView } from '../view_context';

interface IButtonProps {
  label: string;
  /** The server's reason to refuse it to this user; else empty. */
  refused?: string;
  onClick: (event: React.MouseEvent<HTMLElement>) => void;
}

/** A button. A refused one still takes the pointer and the focus, so that its title can give the reason. */
export function Button({
  refused = '',
  title,
  onClick,
  ...rest
}: { refused?: string } & React.ComponentProps<'button'>): JSX.Element {
  return (
    <button
      type="button"
      {...rest}
      title={refused || title}
      aria-disabled={refused ? true : undefined}
      onClick={refused ? undefined : onClick}
    />
  );
}

export function IconButton(
  props: IButtonProps & { icon: typeof refreshIcon; hasMenu?: boolean }
): JSX.Element {
  const { label, icon: Icon, hasMenu, ...rest } = props;
  return (
    <Button
      className="fj-IconButton"
      title={label}
      aria-label={label}
      aria-haspopup={hasMenu ? 'menu' : undefined}
      {...rest}
    >
      <Icon.react tag="span" width="16px" height="16px" />
    </Button>
  );
}

export function TextButton({ label, ...rest }: IButtonProps): JSX.Element {
  return (
    <Button className="fj-TextButton" {...rest}>
      {label}
    </Button>
  );
}

export function LinkButton({ label, ...rest }: IButtonProps): JSX.Element {
  return (
    <Button className="fj-LinkButton" {...rest}>
      {label}
    </Button>
  );
}

/** A button that opens the context menu of its row. */
export function MoreButton({ name }: { name: string }): JSX.Element {
  const { trans } = useView();
  return (
    <IconButton
      label={trans.__('More actions for %1', name)}
      icon={ellipsesIcon}
      hasMenu
      onClick={openMenu}
    />
  );
}

/** Open the row's context menu without a right button: JupyterLab opens it as for a right click. */
function openMenu(event: React.MouseEvent<HTMLElement>): void {
  const { left, bottom } = event.currentTarget.getBoundingClientRect();
  event.currentTarget.dispatchEvent(
    new MouseEvent('contextmenu', {
      bubbles: true,
      cancelable: true,
      clientX: left,
      clientY: bottom
    })
  );
}
