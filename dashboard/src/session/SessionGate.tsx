/** Shows the page to whoever is logged in, and the login to everybody else. */
import { Center, Loader } from '@mantine/core';
import { useQueryClient } from '@tanstack/react-query';
import { createContext, type ReactNode, useCallback, useContext, useEffect, useMemo, useState } from 'react';
import { failure } from '../api/client';
import type { Scope } from '../api/types';
import { type FeedState, followEvents } from '../live/feed';
import { LoginPage } from './LoginPage';
import { type Credentials, currentSession, logIn, logOut, type Session, takeCode } from './session';

interface SessionContext {
  session: Session;
  feed: FeedState;
  leave: () => Promise<void>;
}

const Context = createContext<SessionContext | undefined>(undefined);

/** The session of this page, and whether the daemon is heard. */
export function useSession(): SessionContext {
  const context = useContext(Context);
  if (!context) throw new Error('useSession is for what SessionGate shows');
  return context;
}

const ORDER: Scope[] = ['read', 'operate', 'admin'];

/** Whether the session may do what needs this scope. */
export function useMay(needed: Scope): boolean {
  return ORDER.indexOf(useSession().session.scope) >= ORDER.indexOf(needed);
}

type State = { is: 'asking' } | { is: 'out'; why: string | undefined } | { is: 'in'; session: Session };

export function SessionGate({ children }: { children: ReactNode }) {
  const cache = useQueryClient();
  const [state, setState] = useState<State>({ is: 'asking' });
  const [feed, setFeed] = useState<FeedState>('connecting');

  const enter = useCallback(async (credentials: Credentials) => {
    setState({ is: 'in', session: await logIn(credentials) });
  }, []);

  const end = useCallback(
    (why: string | undefined) => {
      cache.clear();
      setState({ is: 'out', why });
    },
    [cache],
  );

  useEffect(() => {
    const code = takeCode();
    const asked = code ? logIn({ code }) : currentSession();
    asked.then(
      (session) => setState({ is: 'in', session }),
      (error: unknown) => {
        const { code: reason, message } = failure(error);
        // Nobody has to be told that they have not logged in yet.
        setState({ is: 'out', why: code || reason !== 'unauthenticated' ? message : undefined });
      },
    );
  }, []);

  // The cache says when a request was refused for want of a session.
  useEffect(
    () =>
      cache.getQueryCache().subscribe(({ query }) => {
        if (query.state.error && failure(query.state.error).endsSession) {
          end('Your session is over. Log in again to go on.');
        }
      }),
    [cache, end],
  );

  const isIn = state.is === 'in';
  useEffect(() => {
    if (!isIn) return;
    return followEvents({
      cache,
      onState: setFeed,
      stillLoggedIn: () =>
        currentSession().then(
          () => true,
          (error: unknown) => !failure(error).endsSession,
        ),
    });
  }, [cache, isIn]);

  useEffect(() => {
    if (feed === 'ended') end('Your session is over. Log in again to go on.');
  }, [feed, end]);

  const context = useMemo(() => {
    if (state.is !== 'in') return undefined;
    const leave = async () => {
      await logOut();
      end(undefined);
    };
    return { session: state.session, feed, leave };
  }, [state, feed, end]);

  if (state.is === 'asking') {
    return (
      <Center h="100vh">
        <Loader aria-label="Loading" />
      </Center>
    );
  }
  if (state.is === 'out' || !context)
    return <LoginPage why={state.is === 'out' ? state.why : undefined} onLogin={enter} />;
  return <Context value={context}>{children}</Context>;
}
