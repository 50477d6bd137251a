/** The machine's GPUs: how full they are, and of what. */

import React from 'react';

import { LinkButton } from '../components/buttons';
import { Meter } from '../components/indicators';
import { Section } from '../components/section';
import type { IDevice, IDeviceUsage, IOwner } from '../models';
import { useView } from '../view_context';
import { modelName, size, visible } from '../words';

/** So many other processes are listed; the rest is counted. */
const SHOWN_OTHERS = 5;

export function Devices(): JSX.Element | null {
  const { trans, manager } = useView();
  const { snapshot, usage } = manager.state ?? {};
  if (!snapshot || !usage) {
    return null;
  }
  const { devices, device_problem: problem, pools } = snapshot;
  const wanted = pools.some(pool => pool.devices.count > 0);
  return (
    <Section title={trans.__('GPUs')}>
      {!devices.length && !problem && (
        <p className="fj-Quiet">{trans.__('none found; tasks run on the CPU')}</p>
      )}
      {problem && (
        <div className={wanted ? 'fj-Problem' : 'fj-Quiet'} data-kind="no-gpu">
          <p>{trans.__('No GPU can be used: %1', visible(problem, 300))}</p>
          <LinkButton label={trans.__('Check again')} onClick={() => void manager.refresh()} />
        </div>
      )}
      {devices.length > 0 && (
        <ul className="fj-Devices">
          {devices.map(device => (
            <Device key={device.uuid} device={device} usage={usage.devices[device.uuid]} />
          ))}
        </ul>
      )}
      {devices.length > 0 && usage.problem && (
        <p className="fj-Quiet">
          {trans.__('How full they are is not known: %1', visible(usage.problem, 300))}
        </p>
      )}
    </Section>
  );
}

function Device(props: { device: IDevice; usage: IDeviceUsage | undefined }): JSX.Element {
  const { trans } = useView();
  const { device, usage } = props;
  const name = trans.__('GPU %1', device.index);
  const total = device.memory_bytes > 0 ? size(device.memory_bytes) : '';
  const { utilization = null, temperature_c: heat = null } = usage ?? {};
  const memory = usage ? trans.__('%1 of %2', size(usage.used_bytes), total || '?') : '';
  const load = [
    ...(memory ? [memory] : []),
    ...(utilization === null ? [] : [trans.__('%1 % busy', Math.round(utilization))]),
    ...(heat === null ? [] : [`${Math.round(heat)} °C`])
  ];
  return (
    <li className="fj-Device" data-device={device.uuid} title={device.uuid}>
      <div className="fj-Row">
        <span className="fj-Grow fj-Name">
          {name} · {modelName(`${device.model} ${device.partition ?? ''}`.trim())}
        </span>
        {!usage && <span className="fj-Number">{total}</span>}
      </div>
      {usage && device.memory_bytes > 0 && (
        <Meter
          label={trans.__('Memory of %1', name)}
          text={memory}
          most={device.memory_bytes}
          parts={partsOf(usage)}
        />
      )}
      {load.length > 0 && <div className="fj-Quiet fj-Number">{load.join(' · ')}</div>}
      <Owners device={device} owners={usage?.owners ?? []} />
    </li>
  );
}

/** What replicas hold, what others hold, and what nobody is known to hold. */
function partsOf({ used_bytes: used, owners }: IDeviceUsage): { kind: string; value: number }[] {
  const sum = (some: IOwner[]): number =>
    some.reduce((total, owner) => total + (owner.bytes ?? 0), 0);
  const ours = Math.min(used, sum(owners.filter(owner => owner.replica !== null)));
  return [
    { kind: 'replicas', value: ours },
    { kind: 'others', value: used - ours }
  ];
}

function Owners({ device, owners }: { device: IDevice; owners: IOwner[] }): JSX.Element {
  const { trans } = useView();
  // Who has the device to itself is said also while it holds no memory there, or none that can be measured.
  const holder =
    device.replica !== null && !owners.some(owner => owner.replica === device.replica)
      ? device.replica_name
      : null;
  const ours = owners.filter(owner => owner.replica !== null);
  const others = owners
    .filter(owner => owner.replica === null)
    .sort((one, other) => (other.bytes ?? 0) - (one.bytes ?? 0));
  const rest = others.length - SHOWN_OTHERS;
  if (holder === null && !owners.length) {
    return <div className="fj-Holder fj-mod-free">{trans.__('free')}</div>;
  }
  return (
    <ul className="fj-Owners">
      {holder !== null && <li className="fj-Holder">{trans.__('held by %1', visible(holder))}</li>}
      {[...ours, ...others.slice(0, SHOWN_OTHERS)].map(
        ({ label, replica, pid, user, bytes }, place) => (
          <li
            key={place}
            className={replica === null ? 'fj-Holder fj-mod-other fj-Row' : 'fj-Holder fj-Row'}
            title={trans.__('pid %1', pid)}
          >
            <span className="fj-Grow fj-Name">
              {visible(label)}
              {replica === null && user !== null && ` (${visible(user)})`}
            </span>
            {bytes !== null && <span className="fj-Number">{size(bytes)}</span>}
          </li>
        )
      )}
      {rest > 0 && (
        <li className="fj-Holder fj-mod-other">
          {trans._n('and %1 other process', 'and %1 other processes', rest)}
        </li>
      )}
    </ul>
  );
}
