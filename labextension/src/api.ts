/** The only file that makes requests; docs/server-api.md says which there are. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import type { TimelineAnswer } from '../../flyte_jupyter/widgets/timeline.js';
import type { IPeek, IState, Verb } from './models';
import { parseState } from './parse_state';

const NAMESPACE = 'flyte-jupyter';

export interface IStreamListener {
  onState(state: IState): void;
  /** Once, unless the stream was disposed: it ended, or it never opened. */
  onClose(): void;
}

export interface IStream {
  dispose(): void;
}

/** What the manager needs of a server. */
export interface IApi {
  /** The state, or null if it still is the one with this tag. */
  state(since: string | null): Promise<IState | null>;
  stream(listener: IStreamListener): IStream;
  act(verb: Verb): Promise<void>;
  log(replica: string, lines: number): Promise<string>;
  failure(pool: string): Promise<string>;
  peek(replica: string, expressions: readonly string[]): Promise<IPeek>;
  timeline(pool: string, since: string | null): Promise<TimelineAnswer>;
}

/** The server's answer was an error; `status` is HTTP's. */
export class RequestFailed extends Error {
  constructor(
    message: string,
    readonly status: number
  ) {
    super(message);
  }
}

export class Api implements IApi {
  constructor(settings: ServerConnection.ISettings) {
    this._settings = settings;
  }

  async state(since: string | null): Promise<IState | null> {
    const query = since === null ? '' : URLExt.objectToQueryString({ since });
    const answer = await this._request(`pools${query}`, {});
    return answer === null ? null : parseState(answer);
  }

  stream(listener: IStreamListener): IStream {
    const { wsUrl, appendToken, token, WebSocket } = this._settings;
    const query = appendToken && token ? URLExt.objectToQueryString({ token }) : '';
    const socket = new WebSocket(URLExt.join(wsUrl, NAMESPACE, 'stream') + query);
    let open = true;
    const close = (): void => {
      if (open) {
        open = false;
        socket.close();
        listener.onClose();
      }
    };
    socket.onmessage = ({ data }: MessageEvent<string>) => {
      if (!open) {
        return;
      }
      try {
        listener.onState(parseState(JSON.parse(data)));
      } catch (error) {
        console.warn('flyte-jupyter: unreadable state', error);
        close();
      }
    };
    socket.onclose = close;
    socket.onerror = close;
    return {
      dispose: () => {
        open = false;
        socket.close();
      }
    };
  }

  async act(verb: Verb): Promise<void> {
    await this._request(`${verb.on}/${encodeURIComponent(verb.id)}/${verb.verb}`, {
      method: 'POST',
      body: JSON.stringify(verb.body ?? {})
    });
  }

  async log(replica: string, lines: number): Promise<string> {
    const path = `replicas/${encodeURIComponent(replica)}/log?tail=${lines}`;
    const answer = await this._request(path, {});
    return (answer as { text: string }).text;
  }

  async failure(pool: string): Promise<string> {
    const answer = await this._request(`pools/${encodeURIComponent(pool)}/failure`, {});
    return (answer as { cause: string }).cause;
  }

  async peek(replica: string, expressions: readonly string[]): Promise<IPeek> {
    return (await this._request(`replicas/${encodeURIComponent(replica)}/peek`, {
      method: 'POST',
      body: JSON.stringify({ expressions, stack: true, gpu: true })
    })) as IPeek;
  }

  async timeline(pool: string, since: string | null): Promise<TimelineAnswer> {
    const query = since === null ? '' : URLExt.objectToQueryString({ since });
    return (await this._request(
      `pools/${encodeURIComponent(pool)}/timeline${query}`,
      {}
    )) as TimelineAnswer;
  }

  private async _request(path: string, init: RequestInit): Promise<unknown> {
    // Not URLExt.join: it would take a query apart.
    const url = `${URLExt.join(this._settings.baseUrl, NAMESPACE)}/${path}`;
    const response = await ServerConnection.makeRequest(url, init, this._settings);
    if (response.status === 204) {
      return null;
    }
    if (!response.ok) {
      throw new RequestFailed(await said(response), response.status);
    }
    return response.json();
  }

  private readonly _settings: ServerConnection.ISettings;
}

/** What an error says; a proxy in between may answer with a page instead. */
async function said(response: Response): Promise<string> {
  try {
    const { message } = (await response.json()) as { message?: string };
    return message || `${response.status} ${response.statusText}`;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}
