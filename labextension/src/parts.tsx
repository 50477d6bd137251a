/** What the panel and the details of a pool have in common: context, marks, buttons, and the parts of a pool. */

import type { TranslationBundle } from '@jupyterlab/translation';
import { closeIcon, ellipsesIcon, ReactWidget } from '@jupyterlab/ui-components';
import type { refreshIcon } from '@jupyterlab/ui-components';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { DisposableDelegate, DisposableSet } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import React, { useContext, useEffect, useId, useState } from 'react';

import type { Act, ILease, IPool, IReplica, PoolState, ReplicaState } from './models';
import { calls, poolEnd, poolOf, stepped } from './models';
import { refusal, waitWords } from './labels';
import type { IPanelSettings } from './settings';
import type { IPoolManager } from './tokens';
import { whileVisible } from './while_visible';
import { clock, duration, lastLine, MARKS, newestLine, visible } from './words';

const LISTEN_MS = 3_000;
const MAX_LISTEN_MS = 30_000;

export interface IViewProps {
  manager: IPoolManager;
  trans: TranslationBundle;
  /** Runs a command; all verbs are commands. */
  execute: (command: string, args?: ReadonlyPartialJSONObject) => void;
  startDrag: (press: PointerEvent, source: string, label: string) => void;
  reloadPage: () => void;
  settings: IPanelSettings;
}

const View = React.createContext<IViewProps | null>(null);

export function useView(): IViewProps {
  const view = useContext(View);
  if (!view) {
    throw new Error('rendered outside of a view');
  }
  return view;
}

/** The server's time, once a second; one timer for all that count. */
const Now = React.createContext(0);

export function useNow(): number {
  return useContext(Now);
}

const Seen = React.createContext(false);

/** Draws its children anew with each state while they can be seen, and gives them the view's properties and the time. */
export function Frame(props: {
  view: IViewProps;
  seen: boolean;
  children: () => React.ReactNode;
}): JSX.Element {
  const { view, seen } = props;
  const { manager } = view;
  const [now, setNow] = useState(() => manager.now());
  const [, redraw] = useState(0);
  useEffect(() => {
    if (!seen) {
      return;
    }
    const onChange = (): void => {
      setNow(manager.now());
      redraw(count => count + 1);
    };
    onChange();
    manager.changed.connect(onChange);
    const timer = window.setInterval(() => setNow(manager.now()), 1000);
    return () => {
      manager.changed.disconnect(onChange);
      window.clearInterval(timer);
    };
  }, [manager, seen]);
  return (
    <View.Provider value={view}>
      <Seen.Provider value={seen}>
        <Now.Provider value={now}>{props.children()}</Now.Provider>
      </Seen.Provider>
    </View.Provider>
  );
}

/** A widget that watches the pools, and draws what it shows of them, only while it can be seen. */
export abstract class PoolsWidget extends ReactWidget {
  /** @param view - Read anew at each `update()`. */
  constructor(view: () => IViewProps) {
    super();
    this._view = view;
    this.addClass('fj-View');
    this.node.setAttribute('role', 'region');
    whileVisible(this, () => this.watch());
  }

  /** What goes on while it can be seen. */
  protected watch(): DisposableSet {
    const see = (seen: boolean): void => {
      this._seen = seen;
      this.update();
    };
    see(true);
    return DisposableSet.from([
      this._view().manager.watch(),
      new DisposableDelegate(() => see(false))
    ]);
  }

  protected abstract content(): React.ReactNode;

  protected render(): JSX.Element {
    return (
      <Frame view={this._view()} seen={this._seen}>
        {() => this.content()}
      </Frame>
    );
  }

  private readonly _view: () => IViewProps;
  private _seen = false;
}

/** Whether what is shown is old. */
export function isStale({ serverStatus }: IPoolManager): boolean {
  return serverStatus === 'lost' || serverStatus === 'absent' || serverStatus === 'refused';
}

export function Section({
  title,
  children
}: {
  title: string;
  children: React.ReactNode;
}): JSX.Element {
  const id = useId();
  return (
    <section className="fj-Section" aria-labelledby={id}>
      <h3 id={id}>{title}</h3>
      {children}
    </section>
  );
}

/** The shape of a state; its word stands beside it. */
export function StateMark({ state }: { state: PoolState | ReplicaState }): JSX.Element {
  return (
    <span className="fj-Mark" data-state={state} aria-hidden="true">
      {MARKS[state] ?? '?'}
    </span>
  );
}

/** Why whoever looks may not do this; empty if they may. */
export function useRefusal(act: Act): string {
  return refusal(useView().manager.state, act);
}

interface IButtonProps {
  label: string;
  /** Why it does nothing for whoever looks; else empty. */
  refused?: string;
  onClick: (event: React.MouseEvent<HTMLElement>) => void;
}

/** A button. One that is refused can still be pointed at and reached by keyboard, so that it says why. */
function Button({
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

/** Opens the menu of the row it stands in. */
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

/** The row's context menu, for whoever has no right button: the application opens it as for a right click. */
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

export function PoolTimer({ pool }: { pool: IPool }): JSX.Element | null {
  const { trans, settings } = useView();
  const now = useNow();
  const end = poolEnd(pool);
  if (!end) {
    return pool.kept_until ? (
      <span className="fj-Timer" role="timer" title={trans.__('kept warm for so long')}>
        <Clock />
        <span className="fj-Hidden">{trans.__('kept for')} </span>
        {clock(pool.kept_until - now)}
      </span>
    ) : null;
  }
  const left = end.at - now;
  const soon = left <= settings.warnSeconds;
  const what = end.kept ? trans.__('kept; idle off in') : trans.__('idle off in');
  return (
    <span
      className={soon ? 'fj-Timer fj-mod-soon' : 'fj-Timer'}
      role="timer"
      title={`${what} ${clock(left)}`}
    >
      {soon ? <span aria-hidden="true">!</span> : <Clock />}
      <span className="fj-Hidden">{what} </span>
      {clock(left)}
    </span>
  );
}

/** Drawn: fonts seldom have the character. */
function Clock(): JSX.Element {
  return (
    <svg viewBox="0 0 16 16" aria-hidden="true">
      <circle cx="8" cy="8" r="6.5" />
      <path d="M8 4v4l3 2" />
    </svg>
  );
}

export function PoolControls({ pool }: { pool: IPool }): JSX.Element {
  const { trans, execute, settings, manager } = useView();
  const refused = useRefusal('change');
  const { key, scaling } = pool;
  const step = (limit: 'minimum' | 'maximum', by: 1 | -1): void => {
    // What is drawn may be older than the last step.
    const { scaling: now } = poolOf(manager.state, key) ?? pool;
    execute('flyte-jupyter:scale', { pool: key, ...stepped(now, limit, by) });
  };
  return (
    <div
      className="fj-Controls"
      role="group"
      aria-label={trans.__('Replicas of %1', visible(pool.name))}
    >
      <Stepper
        label={trans.__('min')}
        value={scaling.min_replicas}
        least={0}
        less={trans.__('Lower the minimum')}
        more={trans.__('Raise the minimum')}
        refused={refused}
        onStep={by => step('minimum', by)}
      />
      <Stepper
        label={trans.__('max')}
        value={scaling.max_replicas}
        least={1}
        less={trans.__('Lower the maximum')}
        more={trans.__('Raise the maximum')}
        refused={refused}
        onStep={by => step('maximum', by)}
      />
      <span className="fj-Verbs">
        {pool.replicas.length === 0 && (
          <TextButton
            label={trans.__('Warm now')}
            refused={refused}
            onClick={() => execute('flyte-jupyter:warm', { pool: key })}
          />
        )}
        {pool.replicas.length > 0 && (
          <>
            <TextButton
              label={
                pool.kept_until
                  ? trans.__('Stop keeping')
                  : trans.__('Keep %1', duration(settings.keepSeconds))
              }
              refused={refused}
              onClick={() => execute('flyte-jupyter:keep', { pool: key })}
            />
            <TextButton
              label={trans.__('Stop…')}
              refused={refused}
              onClick={() => execute('flyte-jupyter:stop', { pool: key })}
            />
          </>
        )}
      </span>
    </div>
  );
}

function Stepper(props: {
  label: string;
  value: number;
  least: number;
  less: string;
  more: string;
  refused: string;
  onStep: (by: 1 | -1) => void;
}): JSX.Element {
  const { label, value, least, less, more, refused, onStep } = props;
  return (
    <span className="fj-Stepper">
      <Button
        aria-label={less}
        title={less}
        disabled={value <= least}
        refused={refused}
        onClick={() => onStep(-1)}
      >
        −
      </Button>
      <span>
        {label} <output>{value}</output>
      </span>
      <Button aria-label={more} title={more} refused={refused} onClick={() => onStep(1)}>
        +
      </Button>
    </span>
  );
}

function Failure({ pool }: { pool: IPool }): JSX.Element | null {
  const { trans, execute } = useView();
  const now = useNow();
  const [noChange, noLogs] = [useRefusal('change'), useRefusal('logs')];
  const { failure, key } = pool;
  if (!failure) {
    return null;
  }
  return (
    <div className="fj-Problem" data-kind="failure">
      <p>
        {trans.__('%1 did not start:', visible(failure.replica))}{' '}
        <code>{visible(lastLine(failure.cause), 300)}</code>
      </p>
      <p>
        {failure.retry_at === null
          ? trans._n('Given up after %1 attempt.', 'Given up after %1 attempts.', failure.attempts)
          : trans.__('Next attempt in %1.', clock(failure.retry_at - now))}
      </p>
      <LinkButton
        label={trans.__('Show')}
        refused={noLogs}
        onClick={() => execute('flyte-jupyter:show-failure', { pool: key })}
      />
      <LinkButton
        label={trans.__('Retry')}
        refused={noChange}
        onClick={() => execute('flyte-jupyter:warm', { pool: key })}
      />
    </div>
  );
}

/** A call that runs or waits, with the button that ends it. */
function Call(props: { call: ILease; verb: string; time: string; position?: number }): JSX.Element {
  const { execute } = useView();
  const refused = useRefusal('change');
  const { call, verb, time, position } = props;
  return (
    <li className="fj-Call fj-Row">
      {position !== undefined && <span className="fj-Number">{position}.</span>}
      <span className="fj-Grow fj-Name" title={`${visible(call.task)} · ${visible(call.client)}`}>
        {visible(call.task)} <span className="fj-Quiet">{visible(call.client)}</span>
      </span>
      <span className="fj-Number">{time}</span>
      <IconButton
        label={verb}
        icon={closeIcon}
        refused={refused}
        onClick={() => execute('flyte-jupyter:cancel', { lease: call.lease })}
      />
    </li>
  );
}

/** The calls that run on a replica. */
export function Calls({ replica }: { replica: IReplica }): JSX.Element | null {
  const { trans } = useView();
  const now = useNow();
  const running = calls(replica);
  if (!running.length) {
    return null;
  }
  return (
    <ul className="fj-Calls" aria-label={trans.__('Calls on %1', visible(replica.name))}>
      {running.map(call => (
        <Call
          key={call.lease}
          call={call}
          time={clock(now - call.since)}
          verb={trans.__('Stop call %1', visible(call.task))}
        />
      ))}
    </ul>
  );
}

/** What the preload of a replica has said last; asked for while that runs and can be seen. */
export function PreloadLine(props: { replica: IReplica; none?: string }): JSX.Element {
  const { manager, trans } = useView();
  const { id, state } = props.replica;
  const refused = useRefusal('logs');
  const asks = useContext(Seen) && state === 'loading' && !refused;
  const [line, setLine] = useState('');
  useEffect(() => {
    if (!asks) {
      return;
    }
    const poll = new Poll({
      name: 'flyte-jupyter:preload',
      factory: async () => {
        const said = newestLine(await manager.log(id, 5)); // none to be had: nothing is shown
        if (!poll.isDisposed) {
          setLine(said);
        }
      },
      frequency: { interval: LISTEN_MS, backoff: true, max: MAX_LISTEN_MS },
      standby: 'never' // here it can be seen
    });
    return () => poll.dispose();
  }, [manager, id, asks]);
  return line && state === 'loading' ? (
    <div className="fj-Said" title={trans.__('What its preload says')}>
      “{visible(line, 120)}”
    </div>
  ) : (
    <>{props.none}</>
  );
}

/** The calls that wait for a pool, as far as they are listed; with their positions where the list is all there is. */
export function Waiting(props: { pool: IPool; numbered?: boolean }): JSX.Element | null {
  const { trans } = useView();
  const now = useNow();
  const { pool, numbered } = props;
  if (!pool.queue.length) {
    return null;
  }
  return (
    <ol className="fj-Queue" aria-label={trans.__('Waiting for %1', visible(pool.name))}>
      {pool.queue.map(request => (
        <Call
          key={request.lease}
          call={request}
          position={numbered ? request.position + 1 : undefined}
          time={waitWords(request, now, trans)}
          verb={trans.__('Withdraw call %1', visible(request.task))}
        />
      ))}
    </ol>
  );
}

/** What a pool has to tell beside its numbers: why it failed, waits, or is smaller or slower than asked. */
export function Notes({ pool }: { pool: IPool }): JSX.Element {
  const { trans, manager } = useView();
  const spawned = manager.state?.spawned[pool.key];
  return (
    <>
      {pool.failure && <Failure pool={pool} />}
      {pool.waits_for && (
        <p className="fj-Note fj-mod-warn">
          {trans.__('waits for a GPU; held now: %1', visible(pool.waits_for, 300))}
        </p>
      )}
      {pool.notes.map(note => (
        <p key={note} className="fj-Note fj-mod-warn">
          {visible(note, 300)}
        </p>
      ))}
      {spawned && (
        <p className="fj-Note">
          {trans.__('starts slowly, not forked: %1', visible(spawned, 300))}
        </p>
      )}
    </>
  );
}

/** How full something is, in parts of one whole; its text says the same. */
export function Meter(props: {
  label: string;
  text: string;
  most: number;
  parts: { kind: string; value: number }[];
}): JSX.Element {
  const { label, text, most, parts } = props;
  const share = (value: number): number => Math.min(100, (100 * value) / most);
  const whole = parts.reduce((sum, { value }) => sum + value, 0);
  return (
    <div
      className="fj-Meter"
      role="meter"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.round(share(whole))}
      aria-valuetext={text}
    >
      {parts.map(({ kind, value }) => (
        <span key={kind} data-kind={kind} style={{ width: `${share(value)}%` }} />
      ))}
    </div>
  );
}
